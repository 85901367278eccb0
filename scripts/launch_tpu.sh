#!/usr/bin/env bash
# A Cloud TPU slice: copies the repository to all its workers, installs, runs, starts again when a
# worker is lost or the slice is pre-empted. From a machine with gcloud:
#     TPU=my-v5e-64 ZONE=us-west4-a scripts/launch_tpu.sh \
#         train RECIPE mesh.fsdp=-1 run_dir=/mnt/shared/runs/name
# run_dir and a policy.path of your own lie on a file system that every worker mounts (Filestore, or
# a bucket by gcsfuse). Recipes and data of the repository are copied with it.
# TPU, ZONE  of the slice; PROJECT where it isn't gcloud's default
# CREATE     a command that makes the slice anew once it was pre-empted; without it, the end
# RESTARTS   how often to start again (20)
# INSTALL=0  leaves out copying and installing
# Output of all workers comes here; each keeps its own in ~/vrrl/run.log.
set -uo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
run_dir="$(run_dir_of "$@")" || exit 1
restarts="${RESTARTS:-20}"
where=(--zone "$ZONE" ${PROJECT:+--project "$PROJECT"})
log="$(mktemp)"
trap 'rm -f "$log"' EXIT

tpu() { gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
everywhere() { tpu ssh "$TPU" --worker=all --command "$1"; }

install() {
  say "copying the repository to all workers of $TPU"
  local bundle
  bundle="$(mktemp -d)"
  tar -C "$root" --exclude=.venv --exclude=.git --exclude=.cache --exclude=runs \
    -czf "$bundle/vrrl.tar.gz" . &&
    tpu scp "$bundle/vrrl.tar.gz" "$TPU:" --worker=all &&
    everywhere 'mkdir -p ~/vrrl && tar -C ~/vrrl -xzf ~/vrrl.tar.gz && cd ~/vrrl &&
      bash -c "source scripts/environment.sh && make_venv && install_package [tpu] -tpu"'
  local code=$?
  rm -rf "$bundle"
  return "$code"
}

# What a worker does. Its exit code is written out, as gcloud tells no more than that one failed.
# What an earlier start left behind would hold the chips: it is ended first.
arguments="$(printf '%q ' "$@")"
remote="cd ~/vrrl
if [ -f /tmp/vrrl.pid ]; then kill -9 \$(cat /tmp/vrrl.pid) 2>/dev/null; sleep 2; fi
resume=; [ -f $(printf '%q' "$run_dir")/config.yaml ] && resume=--resume
PYTHONHASHSEED=0 .venv/bin/vrrl $arguments --distributed tpu \$resume > run.log 2>&1 & pid=\$!
echo \$pid > /tmp/vrrl.pid; trap \"kill -TERM \$pid\" TERM HUP
tail -n +1 -F --pid=\$pid run.log 2>/dev/null
wait \$pid; echo vrrl ended with \$?"

# The slice as it should be: ready, with everything installed.
prepare() {
  if [[ "$(tpu describe "$TPU" --format='value(state)')" != READY ]]; then
    [[ -n "${CREATE:-}" ]] || fail "$TPU isn't ready; CREATE says how to make it anew"
    say "making $TPU anew"
    tpu delete "$TPU" --quiet
    until eval "$CREATE"; do
      sleep "${PATIENCE:-60}"
    done
    install || return 1
  elif ((try == 0)) && [[ "${INSTALL:-1}" == 1 ]]; then
    install || return 1
  fi
}

for ((try = 0; ; try++)); do
  if prepare; then
    everywhere "$remote" 2>&1 | tee "$log"
    # The first code that was no end; none at all means that the connection or the slice is gone.
    codes="$(sed -n 's/.*vrrl ended with \([0-9][0-9]*\).*/\1/p' "$log")"
    code="$(grep -v '^0$' <<<"$codes" | head -n 1)"
    code="${code:-$([[ -n "$codes" ]] && echo 0 || echo 255)}"
  else
    code=255
  fi
  explain "$code"
  if ((try >= restarts)) || ! restartable "$code"; then
    exit "$code"
  fi
  say "starting again ($((try + 1)) of $restarts)"
done

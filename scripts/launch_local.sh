#!/usr/bin/env bash
# Several processes on this machine, as several hosts would run them:
#     PROCESSES=2 DEVICES=2 scripts/launch_local.sh train configs/quickstart.yaml \
#         mesh.fsdp=-1 run_dir=runs/two
# PROCESSES  how many (2)
# DEVICES    simulated CPU devices of each; 0 leaves the devices as they are, shared by all (1)
# RESTARTS   how often to start all of them again, with --resume, when one is lost (0)
# VRRL       the command (vrrl)
# VRRL_HEARTBEAT_SECONDS  after how long a silent process counts as lost (100)
# Ends with the exit code of the process that ended first in a way that was no end; see
# docs/launch.md. SIGTERM is passed on: all save a checkpoint and end with 75.
set -uo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"
processes="${PROCESSES:-2}" devices="${DEVICES:-1}" restarts="${RESTARTS:-0}"
read -r -a command <<<"${VRRL:-vrrl}"
run_dir="$(run_dir_of "$@")" || exit 1
export PYTHONHASHSEED=0 VRRL_PROCESSES="$processes"
if ((devices > 0)); then
  export JAX_PLATFORMS=cpu
  # In one order on every process: exchanges between CPUs take whatever message comes first.
  flags="--xla_force_host_platform_device_count=$devices"
  flags+=" --xla_cpu_enable_concurrency_optimized_scheduler=false"
  export XLA_FLAGS="${XLA_FLAGS:-} $flags"
fi

pids=() stopped=0
pass_on() {
  stopped=1
  ((${#pids[@]})) && kill -TERM "${pids[@]}" 2>/dev/null
}
trap pass_on TERM INT

# A port that nobody listens at.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  printf '%s' "$port"
}

# start ARGUMENTS: runs all processes to their ends; sets `code`.
start() {
  local i pid status left deadline=0
  VRRL_COORDINATOR="127.0.0.1:$(free_port)"
  export VRRL_COORDINATOR
  pids=() code=0
  for ((i = 0; i < processes; i++)); do
    VRRL_PROCESS_ID="$i" "${command[@]}" "$@" > >(sed -u "s/^/[$i] /") 2>&1 &
    pids+=("$!")
  done
  while ((${#pids[@]})); do
    sleep 0.3
    left=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      wait "$pid"
      status=$?
      if ((status && !code)); then
        code=$status
        # jax ends the others once the lost one was silent for long enough.
        deadline=$((SECONDS + ${VRRL_HEARTBEAT_SECONDS:-100} + 30))
      fi
    done
    pids=(${left[@]+"${left[@]}"})
    if ((deadline && SECONDS > deadline && ${#pids[@]})); then
      kill -KILL "${pids[@]}" 2>/dev/null
    fi
  done
}

for ((try = 0; ; try++)); do
  resume=()
  [[ -f "$run_dir/config.yaml" && " $* " != *" --resume "* ]] && resume=(--resume)
  start "$@" ${resume[@]+"${resume[@]}"}
  explain "$code"
  if ((code == 0 || stopped || try >= restarts)) || ! restartable "$code"; then
    restartable "$code" && say "go on with the same command: it resumes $run_dir"
    exit "$code"
  fi
  say "starting again ($((try + 1)) of $restarts)"
done

#!/usr/bin/env bash
# GPU nodes under Slurm, one process a node with all its GPUs. From the repository:
#     sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 scripts/launch_slurm.sh \
#         train RECIPE mesh.fsdp=-1 run_dir=/shared/runs/name
# run_dir and the repository lie on a file system of all nodes; .venv is made by scripts/test.sh or
#     python3 -m venv .venv && .venv/bin/pip install -e '.[cuda]'
# For one process a GPU add --ntasks-per-node=8: each task then takes the GPU of its number.
# VRRL       the command (.venv/bin/vrrl)
# RESTARTS   how often to start again within the job when a process is lost (3)
#SBATCH --job-name=vrrl
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Five minutes before the time is over every process is told to save and end.
#SBATCH --signal=TERM@300
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
source scripts/launch_common.sh
read -r -a command <<<"${VRRL:-.venv/bin/vrrl}"
run_dir="$(run_dir_of "$@")" || exit 1
restarts="${RESTARTS:-3}"
export PYTHONHASHSEED=0

for ((try = 0; ; try++)); do
  # A requeued job comes here again, and goes on.
  resume=()
  [[ -f "$run_dir/config.yaml" && " $* " != *" --resume "* ]] && resume=(--resume)
  # Lines say which task wrote them; when one fails the others are ended.
  srun --kill-on-bad-exit=1 --label "${command[@]}" "$@" --distributed slurm ${resume[@]+"${resume[@]}"}
  code=$?
  explain "$code"
  if ((code == 75 || code == 143)); then
    # Out of time or pre-empted: the rest in a new place in the queue.
    say "requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
  fi
  if ((try >= restarts)) || ! restartable "$code"; then
    exit "$code"
  fi
  say "starting again ($((try + 1)) of $restarts)"
done

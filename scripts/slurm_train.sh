#!/usr/bin/env bash
# Train under SLURM; see the usage below.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage="usage: bash scripts/slurm_train.sh PARTITION JOB_NAME OPT [extra arguments]
  GPUS            GPUs in all (8)
  GPUS_PER_NODE   GPUs on each machine (8, or GPUS where that is less)
  CPUS_PER_TASK   CPU cores for each GPU (5)
  SRUN_ARGS       more options for srun, separated by spaces
  MASTER_PORT     port of the first machine (29500)
PYTHON names the interpreter, by default that of the active environment or of .venv."
help_if_asked "$usage" "$@"
[[ $# -ge 3 ]] || die "PARTITION, JOB_NAME and OPT are needed"$'\n'"$usage"
partition=$1 job=$2
option=$(find_file "option file" "$3")
shift 3

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
((gpus % per_node == 0)) || die "GPUS=$gpus is no multiple of GPUS_PER_NODE=$per_node"
command -v srun >/dev/null || die "srun not found: this machine has no SLURM; use scripts/dist_train.sh"
choose_python
read -r -a srun_args <<<"${SRUN_ARGS:-}"
export MASTER_PORT=${MASTER_PORT:-29500}
exec srun --partition="$partition" --job-name="$job" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --gres="gpu:$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "$PYTHON" -u -m basicsr_ssl train -opt "$option" --launcher slurm "$@"

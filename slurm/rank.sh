#!/usr/bin/env bash
# Runs a command of the project on a node: in the environment of slurm/site.sh, as the rank that srun made it.
#   slurm/rank.sh pretrain/train.py --config FILE
set -euo pipefail
cd "$UNIX_WORK"
# shellcheck source=slurm/site.sh
. "$UNIX_ROOT/slurm/site.sh"
trap 'echo "error: site_environment of slurm/site.sh ended with code $?: correct what it runs on ${SLURMD_NODENAME:-this node}" >&2
  exit 2' EXIT
site_environment >&2  # standard output is the command's: the batch script reads it
trap - EXIT
if [ -z "$UNIX_CONTAINER" ]; then
  export PATH="$UNIX_VENV/bin:$PATH"  # ninja, which DeepSpeed compiles with, is found here too
fi
if [ -n "${MASTER_PORT:-}" ]; then  # several processes, which find each other
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$UNIX_LOCAL_RANKS
fi
script=$1
shift
exec python "$UNIX_ROOT/$script" "$@"

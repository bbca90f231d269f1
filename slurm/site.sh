# shellcheck shell=bash
# What differs from cluster to cluster. Edit the values here; each can also be set in the environment of a single sbatch.
# docs/cluster.md says more about every line.
: "${UNIX_ROOT:=$PWD}"

# --- what Slurm is asked for: sbatch reads these from the environment, so either run `source slurm/site.sh` once before
# sbatch, or submit with slurm/submit.py, which does. Empty: the cluster's default.
: "${SBATCH_PARTITION:=}"
: "${SBATCH_ACCOUNT:=}"
: "${SBATCH_QOS:=}"

# --- software: empty for a virtual environment, pyxis:IMAGE for srun's --container-image (a .sqsh file, or a registry's
# name), apptainer:IMAGE for `apptainer exec` (a .sif file).
: "${UNIX_CONTAINER:=}"
: "${UNIX_VENV:=$UNIX_ROOT/.venv}"      # virtual environment; not used in a container
: "${UNIX_MOUNTS:=}"                    # folders that a container sees besides the two below, comma-separated

# --- files: relative paths in a configuration, such as work/shards, are looked up here. All nodes must see the folder.
: "${UNIX_WORK:=$UNIX_ROOT}"

# --- machines
: "${UNIX_DEVICE:=gpu}"                 # cpu: nodes are not asked to have GPUs (a cluster of slurm/minislurm has none)
: "${UNIX_RANKS_PER_NODE:=}"            # processes on a node; empty: as many as GPUs were allocated on it
: "${UNIX_INTERFACE:=}"                 # network interface of NCCL and gloo, such as ib0 or ^lo,docker; empty: their choice

# --- limits of the check before each attempt: a node beyond them is named and left out
: "${UNIX_MIN_DISK:=20}"                # GiB that must be free where runs lie
: "${UNIX_MIN_BANDWIDTH:=0}"            # GB/s between two nodes, both ways together; 0: measured, not judged
: "${UNIX_MAX_CLOCK:=5}"                # seconds that a node's clock may differ from the first node's

# --- restarts
: "${UNIX_RESTARTS:=3}"                 # attempts in a row that end without a new checkpoint before the job gives up
: "${UNIX_WAIT:=120}"                   # seconds that the other ranks have to leave once one has

# Runs on every node before Python starts: modules, proxies, NCCL settings.
site_environment() {
  : # module load cuda/12.6
}

# Nothing to edit below: sbatch takes an empty value for a name.
if [ -n "$SBATCH_PARTITION" ]; then export SBATCH_PARTITION; else unset SBATCH_PARTITION; fi
if [ -n "$SBATCH_ACCOUNT" ]; then export SBATCH_ACCOUNT; else unset SBATCH_ACCOUNT; fi
if [ -n "$SBATCH_QOS" ]; then export SBATCH_QOS; else unset SBATCH_QOS; fi

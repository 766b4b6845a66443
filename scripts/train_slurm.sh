#!/usr/bin/env bash
# Trains on several nodes of 8 GPUs under Slurm, one process per GPU. usage: sbatch --nodes=N scripts/train_slurm.sh CONFIG [flags]
# For other nodes: sbatch --gpus-per-node=4 --ntasks-per-node=4, or without GPUs --gpus-per-node=0 --ntasks-per-node=1; add
# --partition, --account and --time as needed. Run it from the repository, on storage that all nodes share. Each node stores the
# whole state, sharded over its processes (fsdp), and the batch is divided over the nodes (data): see docs/scaling.md.
#SBATCH --job-name=t6jax
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time limit Slurm sends SIGTERM to every process: they save, and the requeued job continues.
#SBATCH --signal=TERM@120
set -euo pipefail
config=${1:?usage: sbatch --nodes=N scripts/train_slurm.sh CONFIG [any flag of train.py]}
shift
source scripts/gpu_flags.sh
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
# JAX reads Slurm's variables: the first task is the coordinator, and each task takes the GPU of its local rank.
# --kill-on-bad-exit: if one process fails, the step ends at once.
status=0
mesh="--config.mesh.data=-1 --config.mesh.fsdp=$SLURM_NTASKS_PER_NODE"
srun --kill-on-bad-exit=1 "$python" train.py --config="$config" $mesh "$@" || status=$?
# 143: ended by SIGTERM, saved but not finished
if [ "$status" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

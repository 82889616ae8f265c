#!/usr/bin/env bash
# IR²Net on ImageNet on several nodes of a Slurm cluster, requeued until it is done:
#   sbatch --nodes 4 --gpus-per-node 8 scripts/imagenet_slurm.sh --data-dir /data/imagenet --variant a --output-dir runs/a
# The arguments are imagenet.train's. The output folder must lie on a disk that all nodes share. VENV: see setup.sh; run
# `bash scripts/setup.sh` once before, so that the nodes find the environment.
#SBATCH --job-name=ir2net
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
# Slurm runs a copy of this script: the repository is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source scripts/checks.sh
if [ -z "${SLURM_JOB_ID:-}" ]; then refuse "this is a job for Slurm: sbatch scripts/imagenet_slurm.sh FLAGS"; fi
gpus=${SLURM_GPUS_ON_NODE:-8}
check_count SLURM_GPUS_ON_NODE "$gpus"
source scripts/setup.sh

# Three minutes before the time is up: SIGTERM to the trainers, which save last.pt and end, and back into the queue.
requeue() {
    kill -TERM "$step"
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1

# Restarted ranks must not meet in a store that still holds the addresses of those before them.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
launch() { # exec: so that the signal to this background job is srun's, which hands it on
    exec srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$gpus" \
        --max-restarts 3 --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
        -m imagenet.train --auto-resume "$@"
}
launch "$@" &
step=$!
wait "$step"

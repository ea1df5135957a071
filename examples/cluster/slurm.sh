#!/usr/bin/env bash
# SLURM: train on two nodes of eight GPUs. The arguments are those of quill train:
#
#   sbatch examples/cluster/slurm.sh --config=examples/cluster/gpt-124m.yaml --dataset=/shared/text --out_dir=/shared/out
#
# The text must be readable on every node; only the first process writes to --out_dir. At the time limit Quill saves and
# ends. Submit the job again with --resume=True to continue.
#SBATCH --job-name=quill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=quill-%j.log
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)

exec srun torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc_per_node="$SLURM_GPUS_ON_NODE" \
    --max-restarts=3 \
    --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="$first:${MASTER_PORT:-29500}" \
    -m quill train "$@"

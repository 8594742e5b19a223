#!/bin/bash
# Train on several nodes with Slurm: sbatch examples/slurm_nodes.sh
# The job saves and requeues itself 5 minutes before its time limit, and when it is preempted, until the training is complete.
# It also requeues itself after a node or the network has failed.
#SBATCH --job-name=emollama
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append

set -u

# The configuration, data and output on a file system that all nodes share. On separate disks, copy the data to the same paths.
CONFIG=${CONFIG:-train_configs/custom.yaml}
# The network between the nodes, which must be private: connections between the processes are not authenticated.
INTERFACE=${INTERFACE:-ib0}
# A job that was requeued this often, for any reason, ends if a node or the network fails.
RETRIES=${RETRIES:-50}
# Secrets such as WANDB_API_KEY come from the environment of sbatch, or from a file that only you can read.
if [ -f "$HOME/.emollama_secrets" ]; then
    set -a
    # shellcheck source=/dev/null
    . "$HOME/.emollama_secrets"
    set +a
fi

# The name of the first node can belong to another network than its interface, so its address is used.
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ADDRESS=$(srun --nodes=1 --ntasks=1 --nodelist="$FIRST" ip -4 -o addr show "$INTERFACE" | awk '{split($4, part, "/"); print part[1]; exit}')
if [ -z "$ADDRESS" ]; then
    echo "error: $FIRST has no network interface $INTERFACE with an IPv4 address. Set INTERFACE to one of those that 'ip addr' shows." >&2
    exit 1
fi
PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs can share a node

# Since Slurm 22.05, srun does not inherit --cpus-per-task.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" emollama train --cfg-path "$CONFIG" \
    --nnodes "$SLURM_JOB_NUM_NODES" --rdzv "$ADDRESS:$PORT" --rdzv-id "$SLURM_JOB_ID" --interface "$INTERFACE" \
    --gpus 4 --max-restarts 3 \
    --options run.job_id="slurm_$SLURM_JOB_ID" run.resume_ckpt_path=auto &
step=$!
# Only this script gets the signal. The launchers of all nodes pass it on to their processes.
trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
trap 'kill -TERM "$step"' TERM
wait "$step"
status=$?
while [ "$status" -gt 128 ] && kill -0 "$step" 2> /dev/null; do # a trap ended the wait
    wait "$step"
    status=$?
done

# 75: the run was stopped and saved. 69: a node, or the network, has failed. srun returns the highest status of its tasks, so a
# node can have failed for good then, and only a job that was requeued less than RETRIES times starts again.
if [ "$status" = 75 ] || { [ "$status" = 69 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$RETRIES" ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

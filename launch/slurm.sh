#!/usr/bin/env bash
# Trains, or runs another verb (SSJAX_VERB=verify), on the GPU nodes of a Slurm cluster:
#
#   sbatch --nodes=2 launch/slurm.sh --config experiments/dialogsum.py \
#     --config.workdir=/shared/runs/dialogsum
#
# One process a GPU, because that is what jax.distributed expects of Slurm: each process takes
# the device whose number is its SLURM_LOCALID. For the same reason there is no --gpus-per-task
# here, which would show every process a single device, number 0. Set both 8s below to the GPUs
# of your nodes. The checkout, its .venv and the workdir lie on a file system that all nodes
# share, such as Lustre or NFS.
#
#SBATCH --job-name=ssjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=ssjax-%j.log
# A requeued job goes on in the same log.
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time limit this shell (B:) gets TERM, to save and queue again.
#SBATCH --signal=B:TERM@120
set -euo pipefail

PYTHON=${SSJAX_PYTHON:-.venv/bin/python}
VERB=${SSJAX_VERB:-train}
readonly EXIT_RESUMABLE=42 # ssjax.train saved and stopped

# To the trainers, not to srun: srun takes TERM as an order to end the step.
SIGNALLED=no
trap 'SIGNALLED=yes; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM

# Not --kill-on-bad-exit: the first process to exit with 42 would kill those that still save.
# After a crash the others are ended by jax.distributed. In the background, so that the trap
# runs while it trains.
export PYTHONUNBUFFERED=1
srun --kill-on-bad-exit=0 "$PYTHON" -m "ssjax.$VERB" "$@" &
# A signal ends a wait early; one that none disturbed brings the code of srun.
while :; do
  SIGNALLED=no code=0
  wait $! || code=$?
  [[ $SIGNALLED == yes ]] || break
done

if ((code == EXIT_RESUMABLE)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

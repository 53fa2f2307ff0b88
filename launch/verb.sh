#!/usr/bin/env bash
# Runs any verb on all hosts of a TPU that `tpu_vm.sh setup` has prepared; the first host speaks:
#
#   launch/verb.sh my-tpu us-west4-a verify --workdir /mnt/ssjax/runs/dialogsum --mesh 1,1,16
#   launch/verb.sh my-tpu us-west4-a export --workdir /mnt/ssjax/runs/dialogsum --mesh 1,16,1 --format hf
#
# Give --mesh: with it the hosts work as one, without it each would load the model for itself.
# The run lies where every host sees it. Not for trainings, which outlive a lost connection with
# `tpu_vm.sh run`, nor for prompts on standard input. Tested with a stand-in for gcloud alone.
set -euo pipefail

if (($# < 3)) || [[ " $* " != *" --mesh"* ]]; then
  echo "usage: launch/verb.sh NAME ZONE VERB --mesh DATA,FSDP,TENSOR [ARGUMENTS]" >&2
  exit 2
fi
name=$1 zone=$2 verb=$3
shift 3
printf -v command '%q ' .venv/bin/python -m "ssjax.$verb" "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ssjax && $command"

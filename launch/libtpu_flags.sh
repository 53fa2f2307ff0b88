#!/usr/bin/env bash
# Prints a preset of flags for the TPU compiler; nothing uses one unless you ask:
#
#   launch/tpu_vm.sh run ... --env LIBTPU_INIT_ARGS="$(launch/libtpu_flags.sh overlap)" -- ...
#
# UNMEASURED with ssjax: flags that large training runs of others use. Compare step times before
# you keep one. LoRA with a replicated base has little communication to overlap.
set -euo pipefail

case ${1:-} in
  vmem) # more on-chip memory for one fusion
    flags=(--xla_tpu_scoped_vmem_limit_kib=98304)
    ;;
  overlap) # gathering sharded weights while computing
    flags=(
      --xla_tpu_enable_async_collective_fusion=true
      --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
      --xla_tpu_enable_async_collective_fusion_multiple_steps=true
      --xla_tpu_overlap_compute_collective_tc=true
      --xla_enable_async_all_gather=true
    )
    ;;
  *)
    echo "usage: launch/libtpu_flags.sh vmem|overlap" >&2
    exit 2
    ;;
esac
echo "${flags[*]}"

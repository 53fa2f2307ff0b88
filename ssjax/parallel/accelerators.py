"""What the devices are: how much they can do and hold, and whether they are all that there are."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

# Products of dense bfloat16 matrices, operations per second of a chip, by `device_kind`, as the
# makers publish them: Google, cloud.google.com/tpu/docs, one page a generation; NVIDIA, the data
# sheet of each chip, without sparsity.
PEAK_FLOPS: Mapping[str, float] = {
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(devices: Sequence) -> float | None:
    """Operations per second of one device at most; None: not known of this kind.

    A chip may be several devices, which have its peak together.

    Args:
      devices: of one kind.
    """
    chip = PEAK_FLOPS.get(devices[0].device_kind)
    per_chip = 1 + max(getattr(device, "core_on_chip", 0) or 0 for device in devices)
    return chip and chip / per_chip


def memory() -> dict[str, float]:
    """Of the fullest device of this process, in GiB: memory_gib, in use, and memory_peak_gib.

    Empty where devices do not tell, such as a CPU.
    """
    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {
        name: max(stats[key] for stats in found) / 2**30
        for name, key in names.items()
        if found and all(key in stats for stats in found)
    }


def device_line(devices: Sequence) -> str:
    """Kind and number of devices, and of the processes that have them, as one line."""
    processes = len({device.process_index for device in devices})
    kind = devices[0].device_kind
    shared = f" of {processes} processes" if processes > 1 else ""
    return f"{len(devices)} x {kind}{shared}"


def fallback_line(root: Path = Path("/")) -> str:
    """What there is to say where JAX computes on the CPU though there seems to be something faster.

    Empty: it does not, was asked to, or this is a machine without.

    Args:
      root: of the file system, whose devices are looked at.
    """
    if _asked_platforms() or jax.default_backend() != "cpu":
        return ""
    found = _accelerators(root)
    if not found:
        return ""
    return (
        f"WARNING: JAX computes on the CPU, although there is {found}: the JAX that is installed "
        "may be that for CPUs, or its plugin failed (JAX_PLATFORMS=cuda or tpu shows why); where "
        "the CPU is meant, JAX_PLATFORMS=cpu says so"
    )


def _asked_platforms() -> str:
    return jax.config.jax_platforms or ""


def _accelerators(root: Path) -> str:
    """In words; empty: none."""
    devices = root / "dev"
    if any(devices.glob("nvidia[0-9]*")):
        return "an NVIDIA GPU (/dev/nvidia0)"
    if (devices / "kfd").exists():
        return "an AMD GPU (/dev/kfd)"
    if any(devices.glob("accel[0-9]*")):
        return "a TPU (/dev/accel0)"
    # Those of later generations; by itself such a file may be of anything.
    if any(devices.glob("vfio/[0-9]*")) and _is_installed("libtpu"):
        return "a TPU (/dev/vfio)"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return next((f"the JAX plugin {p.name}" for p in plugins if p.name != "tpu"), "")


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

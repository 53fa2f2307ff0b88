"""TPU topologies that are not there: their devices for the compiler, and what a chip can do."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping

import jax

from ssjax.errors import UserError
from ssjax.parallel.accelerators import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of a chip; a roofline made of them is a bound, not a measurement."""

    hbm: int  # bytes
    flops: float  # bfloat16 products, per second
    bandwidth: float  # of HBM, bytes per second
    interconnect: float  # to other chips, all links together, bytes per second
    # Cycles per second of the matrix units, as it follows from the peak and their number and size:
    # of a v5e four of 128 x 128, 4 * 128 * 128 * 2 * 1.5e9 = 197e12.
    clock: float


CHIPS: Mapping[str, Chip] = {
    "v4": Chip(32 * GIB, PEAK_FLOPS["TPU v4"], 1228e9, 300e9, 1.05e9),
    "v5e": Chip(16 * GIB, PEAK_FLOPS["TPU v5 lite"], 819e9, 200e9, 1.5e9),
    "v5p": Chip(95 * GIB, PEAK_FLOPS["TPU v5"], 2765e9, 600e9, 1.75e9),
    "v6e": Chip(32 * GIB, PEAK_FLOPS["TPU v6 lite"], 1640e9, 448e9, 1.75e9),
    "tpu7x": Chip(192 * GIB, PEAK_FLOPS["TPU7x"], 7380e9, 1200e9, 2.2e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that programs are compiled for."""

    name: str  # such as v5e:4x4
    devices: tuple  # abstract, for a mesh
    device: Chip  # the part of a chip that one device is

    @property
    def num_devices(self) -> int:
        return len(self.devices)


def open_topology(name: str) -> Topology:
    """Describes a topology; the compiler of `jax[tpu]` must be installed, a TPU need not be.

    Args:
      name: FAMILY:SHAPE, such as v5e:4x4; v5e:1x1 is one chip.

    Raises:
      UserError: no such topology, or no compiler.
    """
    family, _, shape = name.partition(":")
    sizes = shape.split("x")
    if family not in CHIPS or not all(size.isdigit() for size in sizes):
        raise UserError(
            f"--topology={name} must be FAMILY:SHAPE such as v5e:4x4, with FAMILY one of "
            f"{', '.join(CHIPS)}"
        )
    # Else the compiler asks for the metadata of a virtual machine, and waits for it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several plans at a time
    from jax.experimental import topologies

    # Several chips stand in hosts of some shape; of one chip that has to be said.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if set(sizes) == {"1"} else {}
    try:
        devices = topologies.get_topology_desc(name, "tpu", **alone).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                'compiling for TPU needs its compiler: pip install "ssjax[plan]" (Linux, x86)'
            ) from None
        raise UserError(f"--topology={name}: {str(error).splitlines()[0]}") from None
    per_chip = len(devices) // math.prod(map(int, sizes))
    chip = CHIPS[family]
    shares = {f.name: getattr(chip, f.name) / per_chip for f in dataclasses.fields(chip)}
    shares |= {"hbm": chip.hbm // per_chip, "clock": chip.clock}
    return Topology(name, tuple(devices), Chip(**shares))

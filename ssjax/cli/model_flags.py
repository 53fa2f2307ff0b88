"""Flags that say which trained model a verb works on, on which devices, and how it is held."""

import dataclasses
import functools
import re
from collections.abc import Sequence

from absl import flags
from jax.sharding import Mesh

from ssjax.cli import command_line, start
from ssjax.cli.options import define_distributed_flag
from ssjax.config import MeshConfig
from ssjax.config import experiment as experiment_lib
from ssjax.errors import UserError
from ssjax.parallel import partitioning, program_cache
from ssjax.run import Run, load
from ssjax.weights.load import Trained, load_trained

_SIZE = re.compile(r"-1|[1-9][0-9]{0,8}")


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """Which trained model."""

    _workdir: flags.FlagHolder
    _checkpoint: flags.FlagHolder
    _base: flags.FlagHolder
    _adapter: flags.FlagHolder | None
    _task_file: flags.FlagHolder
    _devices: "DeviceFlags"
    _weights: flags.FlagHolder | None

    @property
    def workdir(self) -> str:
        """As given."""
        return self._workdir.value

    @property
    def base(self) -> str | None:
        """As given."""
        return self._base.value

    @property
    def mesh(self) -> Mesh | None:
        """See `DeviceFlags`; None: the first device."""
        return self._devices.mesh

    @property
    def int8(self) -> bool:
        """Whether its large matrices are held in eight bits."""
        return self._weights is not None and self._weights.value == "int8"

    def open(self) -> Run:
        """The model, ready to decode. Raises: UserError, as `ssjax.load`."""
        self._prepare()
        parts = self._parts | {"mesh": self.mesh, "int8": self.int8}
        return load(self.workdir, self._checkpoint.value, **parts)

    def read(self) -> Trained:
        """Its weights as they were trained. Raises: UserError, as `ssjax.load`."""
        self._prepare()
        return load_trained(self.workdir, self._checkpoint.value, **self._parts, mesh=self.mesh)

    def _prepare(self):
        self._devices.join()
        # Where the run kept its programs does not count: they are code, and it may be a stranger's.
        program_cache.keep()
        if self._task_file.value:
            experiment_lib.run(self._task_file.value)

    @property
    def _parts(self) -> dict[str, str | None]:
        adapter = None if self._adapter is None else self._adapter.value
        return {"adapter": adapter, "base": self.base}


@dataclasses.dataclass(frozen=True)
class DeviceFlags:
    """On which devices, of which processes."""

    _mesh: flags.FlagHolder
    _distributed: flags.FlagHolder | None

    def join(self) -> None:
        """Joins the other processes, where there is a mesh; to be called before devices are used.

        Raises:
          UserError: they are asked for without a mesh, or cannot be reached.
        """
        how = "off" if self._distributed is None else self._distributed.value
        if self._mesh.value:
            start.join(how)
        elif how not in ("auto", "off"):
            raise UserError(
                f"--distributed={how} needs --mesh: without one the first device works alone"
            )

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """As given, see `open_mesh`; None: the first device."""
        return open_mesh(self._mesh.value) if self._mesh.value else None


def define_device_flags(*, distributed: bool = True) -> DeviceFlags:
    """Flags that say on which devices a verb works.

    Args:
      distributed: several processes may work together, where there is a --mesh.
    """
    help_text = (
        "Sizes of data, fsdp and tensor that the weights are divided over, such as 1,1,4; default: "
        "the first device."
    )
    return DeviceFlags(
        flags.DEFINE_list("mesh", [], help_text),
        define_distributed_flag() if distributed else None,
    )


def open_mesh(sizes: Sequence[str]) -> Mesh:
    """A mesh of all devices, of sizes as they are written.

    Raises:
      UserError: not three sizes, or not as many devices.
    """
    fit = all(_SIZE.fullmatch(size.strip()) for size in sizes)
    if len(sizes) != 3 or not fit or sizes.count("-1") > 1:
        raise UserError(f"--mesh={','.join(sizes)} must be three sizes, such as 1,1,4 or 1,1,-1")
    return partitioning.make_mesh(MeshConfig(*map(int, sizes)))


def define_model_flags(
    *, adapter: bool = True, int8: bool = True, distributed: bool = True
) -> ModelFlags:
    """Flags that say which trained model a verb works on.

    Args:
      adapter: its weights may be a base with an adapter.
      int8: it may be decoded in eight bits.
      distributed: several processes may work on it, where there is a --mesh.
    """
    help_text = "Of ssjax.export --format adapter, put on the base weights of --workdir."
    workdir = flags.DEFINE_string("workdir", None, "Run directory of ssjax.train.")
    return ModelFlags(
        command_line.require(workdir),
        flags.DEFINE_string(
            "checkpoint",
            "latest",
            "latest, best (by checkpoint.best_by of the run, by default the validation loss), or a "
            "step.",
        ),
        flags.DEFINE_string("base", None, "Where the base weights are now; default: as trained."),
        flags.DEFINE_string("adapter", None, help_text) if adapter else None,
        flags.DEFINE_string(
            "task_file",
            None,
            "Python file that registers the task of the run, such as its experiment.",
        ),
        define_device_flags(distributed=distributed),
        flags.DEFINE_enum(
            "weights",
            None,
            ["int8"],
            "int8: decode with projections, embedding and heads in eight bits, a scale for each "
            "row; default: in the compute dtype.",
        )
        if int8
        else None,
    )

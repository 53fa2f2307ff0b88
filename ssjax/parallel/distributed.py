"""Several processes as one run: who they are, who writes, and how they wait for each other.

One process a host on TPU, one a GPU or a host under Slurm. All run the same program on the
same mesh; only the first one writes files that all read, and only it speaks.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ssjax.errors import UserError

Result = TypeVar("Result")

# Hosts of a pod are not up at the same moment: package installation alone differs by minutes.
_TIMEOUT_SECONDS = 600


def initialize(how: str) -> None:
    """Joins the processes of a run. To be called before any other use of devices.

    Args:
      how: value of --distributed.

    Raises:
      UserError: the value is not understood, or the other processes cannot be reached.
    """
    if how == "off" or jax.distributed.is_initialized():
        return
    if how == "auto":
        if jax.config.jax_platforms != "cpu":  # CPU processes are not looked for
            _join_cluster()
        return
    address, *numbers = how.split(",")
    if ":" not in address or len(numbers) != 2 or not all(n.isdigit() for n in numbers):
        raise UserError(
            f"--distributed={how} must be auto, off or HOST:PORT,NUM_PROCESSES,INDEX, such as "
            "10.0.0.2:8476,4,0"
        )
    count, index = map(int, numbers)
    if index >= count:
        raise UserError(f"--distributed={how}: indices of {count} processes are 0 to {count - 1}")
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=_TIMEOUT_SECONDS)
    except RuntimeError as error:
        raise UserError(f"--distributed={how}: {str(error).splitlines()[0]}") from None


def _join_cluster() -> None:
    try:
        jax.distributed.initialize(initialization_timeout=_TIMEOUT_SECONDS)
    except ValueError as error:
        # JAX raises the same kind where it knows no cluster here, and has no call that asks: that
        # it misses this argument is said in the text alone.
        if "coordinator_address" not in str(error):
            raise UserError(
                f"this looks like a cluster, but joining it failed ({error}); give --distributed="
                "HOST:PORT,NUM_PROCESSES,INDEX, or --distributed=off for one process"
            ) from None


def is_first() -> bool:
    """Whether this process writes and speaks for the run."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def first(function: Callable[[], Result]) -> Result | None:
    """Calls a function in the first process while the others wait; only the first has its result.

    Raises:
      UserError: the function raised one; in the other processes it points at the first, with the
        same exit code.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return function()
    result, error = None, None
    if is_first():
        try:
            result = function()
        except UserError as raised:
            error = raised
    code = multihost_utils.broadcast_one_to_all(np.array(0 if error is None else error.exit_code))
    if error is not None:
        raise error
    if code:
        error = UserError("the first process of this run stopped; its log says why")
        error.exit_code = int(code)
        raise error
    return result


def agreed(values: Sequence[float]) -> list[float]:
    """The values of the first process, in all; for what is decided by a clock. All must call it."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return list(values)
    return multihost_utils.broadcast_one_to_all(np.array(values, np.float32)).tolist()


def gather(text: str) -> list[str]:
    """What each process says, in their order; to be called by all. Cut at 500 bytes."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return [text]
    row = np.frombuffer(text.encode()[:500].ljust(500, b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(row)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]

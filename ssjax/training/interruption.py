"""Ctrl-C and SIGTERM as a request to stop, on which all processes agree at the same step.

And the end of a process that cannot go on, which nothing may put off.
"""

import enum
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssjax.parallel.partitioning import MESH_AXES, replicated


class Interruption:
    """While entered, the first SIGINT or SIGTERM sets `requested`, the second one interrupts.

    Elsewhere nothing has to be saved, and the signals keep their usual meaning.

    Args:
      say: prints one line for the user.
      then: what comes of the first signal, for that line.
    """

    def __init__(self, say: Callable[[str], None], then: str = "saving after this step"):
        self.requested = False
        self._say, self._then = say, then
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._say(f"{signal.Signals(number).name}: {self._then}; once more to stop at once")


def end_within(seconds: float, code: int) -> None:
    """Lets this process end some seconds after its main thread at the latest.

    Python waits for threads first, and those of a failed save wait for other processes that may
    wait for this one: measured with two processes of which one found no room, 20 minutes.

    Args:
      seconds: for threads that end in peace, such as another save.
      code: of the process.
    """

    def watch():
        threading.main_thread().join()
        time.sleep(seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


class Wish(enum.IntEnum):
    """What a process wants after a step. The greatest of all holds: who stops saves too."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Vote:
    """What any process was asked for, decided alike in all of them.

    Every process casts its vote right after a training step, as a small program on the same
    devices, and reads the outcome one step later: the devices never wait for it.

    Args:
      mesh: of all processes.
    """

    def __init__(self, mesh: Mesh):
        self._one_process = jax.process_count() == 1
        self._shape = mesh.devices.shape
        self._sharding = NamedSharding(mesh, PartitionSpec(*MESH_AXES))
        self._most = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._cast = None

    def decide(self, wish: Wish) -> Wish:
        """To be called after each step, by all processes.

        Args:
          wish: of this process.

        Returns:
          What to do now. With several processes a wish counts from the next call on.
        """
        if self._one_process:
            return wish
        votes = jax.make_array_from_callback(
            self._shape,
            self._sharding,
            lambda index: np.full(_size(index, self._shape), wish, np.int32),
        )
        before, self._cast = self._cast, self._most(votes)
        return Wish.GO_ON if before is None else Wish(int(before))


def _size(index, shape):
    return [len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)]

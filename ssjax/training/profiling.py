"""A trace of chosen steps, or of the moment, for TensorBoard or Perfetto."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.writing import make_directory, writing


class Profile:
    """Records `count` steps from step `first` on with `jax.profiler`.

    Args:
      directory: for the trace; one of each process.
      first: number of the first step; 0: nothing is recorded.
      count: of steps.

    Raises:
      UserError: the directory cannot be written to.
    """

    def __init__(self, directory: Path, first: int, count: int):
        self._directory, self._first, self._last = directory, first, first + count - 1
        self._on_disk = directory
        if first:
            make_directory(directory)
            if places.is_bucket(directory):
                self._temporary = tempfile.TemporaryDirectory()
                self._on_disk = Path(self._temporary.name)

    def before_step(self, step: int) -> None:
        """Begins with the first step that is wanted."""
        if self._first and step == self._first:
            jax.profiler.start_trace(str(self._on_disk))

    def after_step(self, step: int, result) -> None:
        """Ends after the last step; waits for its result, so that the trace is whole."""
        if self._first and step == self._last:
            jax.block_until_ready(result)
            with writing(self._directory):
                jax.profiler.stop_trace()
            if self._on_disk != self._directory:
                for name in places.files_below(self._on_disk):
                    places.put(self._on_disk / name, self._directory / name)


@contextlib.contextmanager
def server(port: int) -> Iterator[None]:
    """A server of this process that traces when TensorBoard or xprof ask it to.

    Args:
      port: that it listens at; 0: there is none.

    Raises:
      UserError: it cannot listen there.
    """
    if not port:
        yield
        return
    try:
        jax.profiler.start_server(port)
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise UserError(
            f"no profiler server at train.profiler_port={port} ({str(error).splitlines()[0]}); "
            "give a port that is free on every host"
        ) from None
    try:
        yield
    finally:
        jax.profiler.stop_server()

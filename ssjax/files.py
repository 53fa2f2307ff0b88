"""Files that are either whole or absent."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssjax.errors import UserError


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[Path]:
    """A directory that appears under its name when the block is left without an error.

    Raises:
      UserError: something is there already.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; give another --target or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp makes directories that only their owner can read
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that a reader, or the next start after a kill, never sees half of it.

    Missing parent directories are made. The content goes to a temporary file in the same
    directory, is flushed to disk, and takes the place of `path` in one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

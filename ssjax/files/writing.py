"""Files and directories that are either whole or absent, on a disk and in a bucket.

A directory in a bucket cannot be made aside and renamed. It is written in place, and whoever
writes it puts the file last that readers look for first (config.json, ssjax.json). `.incomplete`
lies in it until then, so that what a kill left behind is known, and goes when it is written again.
"""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssjax.errors import StorageError, UserError
from ssjax.files import places

_INCOMPLETE = ".incomplete"
_PROBE = ".probe"

# Of storage that is somewhere else. All other refusals stay until somebody mends them.
_PASSING = (
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EIO,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
)


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[Path]:
    """A directory that appears under its name when the block is left without an error.

    Raises:
      UserError: something is there already, or it cannot be made.
    """
    path = places.of(path)
    _check_new(path)
    if places.is_bucket(path):
        with _new_in_bucket(path):
            yield path
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        with writing(path):
            os.chmod(temporary, 0o755)  # mkdtemp makes directories that only their owner can read
            if path.exists():
                path.rmdir()
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _new_in_bucket(path: Path) -> Iterator[None]:
    places.remove_tree(path)  # empty, or what a kill left behind
    (path / _INCOMPLETE).write_bytes(b"")
    try:
        yield
        (path / _INCOMPLETE).unlink()
    except BaseException:
        with contextlib.suppress(UserError):
            places.remove_tree(path)
        raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file on a disk that becomes the one of this name when the block is left without an error.

    For what other libraries write to a path; what is in memory is for `write_atomic`.
    """
    if places.is_bucket(path):
        with tempfile.TemporaryDirectory() as directory:
            temporary = Path(directory) / path.name
            yield temporary
            places.put(temporary, path)
        return
    temporary = path.with_name(f".{path.name}")
    yield temporary
    temporary.chmod(0o644)
    temporary.replace(path)


def make_directory(path: str | os.PathLike) -> Path:
    """Makes a directory that files can be written to, if it is not there.

    Raises:
      UserError: it cannot be made, or not be written to.
    """
    path = places.of(path)
    if places.is_bucket(path):
        _probe(path)
        return path
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")  # a full disk makes files, but empty ones
            file.flush()
    return path


def check_file(path: str | os.PathLike) -> None:
    """Checks before long work that a file can be written in the end; leaves nothing behind.

    Raises:
      UserError: it cannot.
    """
    path = places.of(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; give the name of a file")
    if places.is_bucket(path):
        _probe(path.parent)
        return
    with writing(path):
        if _is_special(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        path = Path(os.path.realpath(path))
    _check_place(path)


def check_directory(path: str | os.PathLike) -> None:
    """The same for a directory that must be new or empty, as `new_directory` wants it."""
    path = places.of(path)
    _check_new(path)
    if places.is_bucket(path):
        _probe(path)
        return
    _check_place(path)


def _check_new(path: Path) -> None:
    with writing(path):
        if places.is_bucket(path) and (path / _INCOMPLETE).exists():
            return
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not empty; give another --target or remove it")


def _probe(directory: Path) -> None:
    """Whether objects may be put there; leaves none."""
    probe = directory / _PROBE
    probe.write_bytes(b"x")
    with contextlib.suppress(FileNotFoundError):  # another process may try the same
        probe.unlink()


def _check_place(path: Path) -> None:
    with writing(path):
        missing = [parent for parent in path.parents if not parent.exists()]
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name[:100]}."
            ) as file:
                file.write(b"x")  # a full disk makes files, but empty ones
                file.flush()
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that a reader, or the next start after a kill, never sees half of it.

    Missing parent directories are made. The content goes to a temporary file in the same
    directory, is flushed to disk, and takes the place of `path` in one step. A link stays and what
    it points to is replaced; a device or a pipe (/dev/null, /dev/stdout) is written to, because a
    file in its place would harm every other program. In a bucket it is one put.

    Raises:
      UserError: it cannot be written.
    """
    path = places.of(path)
    data = content.encode() if isinstance(content, str) else content
    if places.is_bucket(path):
        path.write_bytes(data)
        return
    with writing(path):
        if _is_special(path):
            path.write_bytes(data)
            return
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
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


def _is_special(path: Path) -> bool:
    """Whether there is something that can be written to, but is no file of ours to replace."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """What the file system refuses while the block writes, as one line with the path.

    Raises:
      UserError: an `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise storage_error(reason)(
            f"cannot write {path}: {reason}; give a place that can be written to"
        ) from None
    except ValueError as error:  # a path with a null character
        raise UserError(f"cannot write {str(path)!r}: {error}; give another place") from None


def storage_error(reason: str) -> type[UserError]:
    """The class of error for what a file system says: whether another try may help."""
    passing = any(os.strerror(number) in reason for number in _PASSING)
    return StorageError if passing else UserError

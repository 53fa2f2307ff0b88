"""A run directory is written by one run at a time.

The first process of a run locks a file in it for as long as it lives. The operating system lets
the lock go with the process, however that ends. Where a file system keeps locks within one host
(Cloud Storage FUSE), a run on another host is not seen. A bucket has no locks: the file then says
who writes there, and whoever comes next is told.
"""

import contextlib
import fcntl
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.writing import make_directory, writing
from ssjax.messages import say

FILE = "lock"


@contextlib.contextmanager
def hold(workdir: Path, flag: str = "--config.workdir") -> Iterator[None]:
    """Makes a run directory if it is not there, and keeps other runs out of it.

    A directory that was made here goes again if nothing was written to it.

    Args:
      workdir: the directory.
      flag: that gives another one, for messages.

    Raises:
      UserError: another process holds it, says which; or it cannot be written to.
    """
    if places.is_bucket(workdir):
        with _noted(workdir):
            yield
        return
    missing = [path for path in (workdir, *workdir.parents) if not path.exists()]
    file, holder = _lock(workdir, flag)
    with file:
        if holder and not holder.endswith(f"on {socket.gethostname()}"):
            say(f"{workdir / FILE}: left by {holder}; see to it that this has ended")
        _write(file, _name())
        try:
            yield
        finally:
            _write(file, "")
            with contextlib.suppress(OSError):
                if missing and os.listdir(workdir) == [FILE]:
                    (workdir / FILE).unlink()
                    for path in missing:
                        path.rmdir()


@contextlib.contextmanager
def _noted(workdir: Path) -> Iterator[None]:
    path = make_directory(workdir) / FILE
    holder = _describe(path.read_bytes()) if path.exists() else ""
    if holder:
        say(f"{path}: left by {holder}; a bucket has no locks, see to it that this has ended")
    else:
        say(f"{path}: a bucket has no locks, so nothing keeps a second run out")
    path.write_bytes(_name().encode())
    try:
        yield
    finally:
        with contextlib.suppress(UserError):
            path.unlink(missing_ok=True)


def _name() -> str:
    """Who holds a directory, as it stands in the file."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})


def _lock(workdir: Path, flag: str) -> tuple[io.FileIO, str]:
    """The locked file, and who is named in it."""
    while True:
        path = make_directory(workdir) / FILE
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        file = io.FileIO(handle, "r+")
        holder = _describe(file.read(1000))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{workdir} is in use by {holder or 'another process'}; wait until that ends, "
                f"stop it, or choose another {flag}"
            ) from None
        except OSError as error:
            say(f"{path}: {error.strerror}; see to it that no other process writes to {workdir}")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return file, holder
        file.close()  # who held it has just removed it


def _write(file, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
        file.seek(0)
        file.truncate()
        file.write(text.encode())


def _describe(content: bytes) -> str:
    """Who wrote it, empty if nobody can be made out."""
    try:
        who = json.loads(content)
        return f"process {who['pid']}, there since {who['since']} on {who['host']}"
    except (ValueError, TypeError, KeyError):
        return ""

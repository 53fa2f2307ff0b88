"""Where files lie: on a disk, or in a bucket of an object store.

    runs/dialogsum               a path, as pathlib has it
    gs://my-bucket/dialogsum     an address, with the methods of a path that this package uses

An object store has no directories, no links, no rename, no locks, and nothing can be appended to.
An object appears in one put or not at all, so one file is always whole or absent. What consists of
several files is whole when the one is there that readers look for first: it is put last.

Whoever opens files asks `of` for a path and need not know which of the two it is.
"""

import contextlib
import errno
import fnmatch
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from ssjax.config import addresses
from ssjax.errors import StorageError, UserError

Answer = TypeVar("Answer")

# Answers of a server that may be others at the next try; its client has tried several times.
_PASSING = (408, 429, *range(500, 600))
# As TensorStore begins what it says.
_PASSING_WORDS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED")
_STAYING = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
# How objects of a store are told apart without reading them, best first.
_VERSIONS = ("crc32c", "md5Hash", "ETag", "etag", "generation", "created")


class Unreachable(UserError):
    """A store that refuses or does not answer: nothing is known of what it holds."""


class UnreachableNow(Unreachable, StorageError):
    """One that may answer at another try."""


def is_passing(error: Exception) -> bool:
    """Whether what a client of a store raised may be gone at another try."""
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return (
        code in _PASSING
        or (isinstance(error, OSError) and not isinstance(error, _STAYING))
        or type(error).__module__.startswith("aiohttp.")
        or str(error).startswith(_PASSING_WORDS)
    )


def of(place: str | os.PathLike) -> Path:
    """The path of a place, on a disk or in a bucket.

    Raises:
      UserError: an address without a bucket.
    """
    text = os.fspath(place)
    if not addresses.is_bucket(text):
        return Path(text)
    path = BucketPath(text)
    if len(path.parts) < 2:
        raise UserError(f"{text}: the bucket is missing; give {path.parts[0]}//BUCKET/NAME")
    return path  # type: ignore[return-value]


def is_bucket(place: str | os.PathLike) -> bool:
    """Whether a place is in a bucket: no rename there, no locks, nothing to append to."""
    return addresses.is_bucket(os.fspath(place))


def on_disk(place: str | os.PathLike, flag: str) -> Path:
    """The path of a place that is appended to, which only a disk allows.

    Raises:
      UserError: it is in a bucket; names the flag.
    """
    if is_bucket(place):
        raise UserError(
            f"{flag}={os.fspath(place)} is in a bucket, where nothing can be appended to; give a "
            "path, and copy what comes of it"
        )
    return Path(place)


class BucketPath(PurePosixPath):
    """A path in a bucket. Missing objects are a `FileNotFoundError`, as on a disk.

    Raises:
      Unreachable: by every method that asks the store, if it refuses or does not answer.
    """

    def __str__(self) -> str:
        first, *rest = self.parts or ("",)
        return f"{first}//{'/'.join(rest)}" if first.endswith(":") else super().__str__()

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> "BucketPath":
        return self

    def exists(self) -> bool:
        return self._ask(lambda store: store.exists(str(self)))

    def is_dir(self) -> bool:
        return self._ask(lambda store: store.isdir(str(self)))

    def is_file(self) -> bool:
        return self._ask(lambda store: store.isfile(str(self)))

    def iterdir(self) -> Iterator["BucketPath"]:
        names = self._ask(lambda store: store.ls(str(self), detail=False))
        found = {
            name.rstrip("/").rsplit("/", 1)[-1] for name in names if name.strip("/") != self._key
        }
        return iter([self / name for name in sorted(found)])

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Of names in this directory alone."""
        found = self.iterdir() if self.is_dir() else iter(())
        return (path for path in found if fnmatch.fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        return self._ask(lambda store: store.cat_file(str(self)))

    def write_bytes(self, data: bytes) -> int:
        """One put: the object is whole or absent."""
        self._ask(lambda store: store.pipe_file(str(self), data), writes=True)
        return len(data)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: names of objects make the directories."""

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext():
            self._ask(lambda store: store.rm_file(str(self)))

    @property
    def _key(self) -> str:
        return "/".join(self.parts[1:])

    def _ask(self, question: Callable[[Any], Answer], *, writes: bool = False) -> Answer:
        try:
            return question(_store(self.parts[0].removesuffix(":")))
        except UserError:
            raise
        except FileNotFoundError:
            if writes:
                raise UserError(f"cannot write {self}: no such bucket; make it first") from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        except Exception as error:  # clients raise what theirs do: some ten kinds of four libraries
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            kind = UnreachableNow if is_passing(error) else Unreachable
            verb = "write" if writes else "read"
            raise kind(
                f"cannot {verb} {self}: {told:.200}; check the name, the network and the "
                "credentials"
            ) from None


@functools.cache
def _store(scheme: str) -> Any:
    """The client of one kind of store."""
    package, extra = addresses.CLIENTS[scheme]
    try:
        import fsspec

        # Others write to the bucket too, Orbax of this process among them.
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
        return fsspec.filesystem(scheme)
    except ImportError:
        raise UserError(
            f"{scheme}:// needs {package}, which is not installed; pip install 'ssjax[{extra}]'"
        ) from None


def is_dir(path: Path) -> bool:
    """Whether there is a directory; False, too, where the file system refuses to tell."""
    return path.is_dir() if is_bucket(path) else os.path.isdir(path)


def is_file(path: Path) -> bool:
    """Whether there is a file; False, too, where the file system refuses to tell."""
    return path.is_file() if is_bucket(path) else os.path.isfile(path)


def files_below(directory: Path) -> list[str]:
    """Names of all files below a directory, relative to it, in order."""
    if isinstance(directory, BucketPath):
        return sorted(objects_below(directory))
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [path.relative_to(directory).as_posix() for path in paths]


def objects_below(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and version of every object below a directory of a bucket, by relative name.

    Args:
      directory: of a bucket; of one object, its own name is there.

    Returns:
      By name {"size": bytes, "version": text that changes with the content}.
    """
    found = directory._ask(lambda store: store.find(str(directory), detail=True))
    objects = {}
    for key, info in found.items():
        name = key.strip("/").removeprefix(directory._key).strip("/") or directory.name
        if info.get("type", "file") == "file" and not key.endswith("/"):
            told = next((f"{word}:{info[word]}" for word in _VERSIONS if info.get(word)), "")
            objects[name] = {"size": int(info["size"]), "version": told}
    return objects


def remove_tree(directory: Path, first: str = "") -> None:
    """Removes all that is below a directory of a bucket, one object before the others."""
    names = sorted(objects_below(directory), key=lambda name: name != first)
    with contextlib.suppress(FileNotFoundError):  # somebody else removes them, too
        if names and names[0] == first:
            (directory / names.pop(0)).unlink()
        if names:
            directory._ask(lambda store: store.rm([str(directory / name) for name in names]))


def fetch(path: Path, target: Path) -> None:
    """Copies one object to a file on a disk."""
    path._ask(lambda store: store.get_file(str(path), str(target)))


def put(source: Path, path: Path) -> None:
    """Copies a file of a disk to an object, which appears whole."""
    path._ask(lambda store: store.put_file(str(source), str(path)), writes=True)


def open_bytes(path: Path) -> BinaryIO:
    """A file or an object, to be read as a stream."""
    if isinstance(path, BucketPath):
        return path._ask(lambda store: store.open(str(path), "rb"))
    return path.open("rb")

"""Names, sizes and digests of the files of a directory, such as a checkpoint, kept beside them.

What is read later is compared first: a file that was cut short, lost or changed in a single bit
is found before anything is made of it.

A store keeps a checksum with every object and compares it when the object is written and read, so
in a bucket these are kept and compared: nothing is fetched for it. A directory that was copied from
a bucket to a disk is compared by sizes alone.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import write_atomic

_FILE = "manifest.json"

# Orbax writes these once more when it commits a checkpoint, which has its manifest by then.
_UNLISTED = (_FILE, "_CHECKPOINT_METADATA", "commit_success.txt")


def write(directory: Path, about: dict[str, Any]) -> None:
    """Lists every file that is there now.

    Args:
      directory: complete but for this.
      about: plain values that are kept with the list.

    Raises:
      UserError: it cannot be written.
    """
    if places.is_bucket(directory):
        files = {n: told for n, told in places.objects_below(directory).items() if _listed(n)}
    else:
        names = places.files_below(directory)
        files = {name: _entry(directory / name) for name in names if _listed(name)}
    content = {"about": about, "files": files}
    write_atomic(directory / _FILE, to_json(content | {"sha256": _digest(content)}))


def is_list(name: str) -> bool:
    """Whether a file of a directory is its list."""
    return name == _FILE


def exists(directory: Path) -> bool:
    """Whether there is a list; directories of older versions have none."""
    return (directory / _FILE).is_file()


def about(directory: Path) -> dict[str, Any] | None:
    """What was kept with the list; None: there is no list that can be trusted."""
    try:
        return _read(directory)["about"]
    except places.Unreachable:
        raise
    except UserError:
        return None


def damage(directory: Path, *, only: Sequence[str] = (), part: int = 0, num_parts: int = 1) -> str:
    """What is not as it was written, empty if nothing is found.

    Args:
      directory: one without a list can only be seen to have something in it.
      only: names of files to look at; empty: all.
      part, num_parts: every num_parts-th file from number `part` on, to share the work.
    """
    if not directory.is_dir():
        return "it is a file, not a directory" if directory.exists() else "it is not there"
    if not exists(directory):
        return "" if any(directory.iterdir()) else "it is empty"
    try:
        files = _read(directory)["files"]
    except places.Unreachable:  # which is no damage
        raise
    except UserError as error:
        return str(error)
    names = [name for name in sorted(files) if not only or name in only]
    if places.is_bucket(directory):
        there = places.objects_below(directory)
        found = (_difference_of_object(directory / n, n, files[n], there.get(n)) for n in names)
        return next(filter(None, found), "")
    with futures.ThreadPoolExecutor() as pool:  # large checkpoints have files of 2 GB
        found = pool.map(lambda n: _difference(directory / n, n, files[n]), names[part::num_parts])
        return next(filter(None, found), "")


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of contents by name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _difference(path: Path, name: str, entry: dict[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{name} has {size:,} bytes, {entry['size']:,} were written"
        same = "sha256" not in entry or _entry(path) == entry
        return "" if same else f"{name} is not what was written"
    except OSError as error:
        return f"{name}: {error.strerror}"


def _difference_of_object(
    path: Path, name: str, entry: dict[str, Any], there: Mapping[str, Any] | None
) -> str:
    if there is None:
        return f"{name}: No such file or directory"
    if there["size"] != entry["size"]:
        return f"{name} has {there['size']:,} bytes, {entry['size']:,} were written"
    on_disk = "sha256" in entry  # written there, and copied to the bucket
    same = _entry(path) == entry if on_disk else there == entry
    return "" if same else f"{name} is not what was written"


def _read(directory: Path) -> dict[str, Any]:
    content = read_json_object(directory / _FILE)
    digest = content.pop("sha256", None)
    if digest != _digest(content):
        raise UserError(f"{_FILE} is not what was written")
    return content


def _entry(path: Path) -> dict[str, Any]:
    with places.open_bytes(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.seek(0, os.SEEK_END), "sha256": digest}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _listed(name: str) -> bool:
    return name.rsplit("/", 1)[-1] not in _UNLISTED

"""Files of a bucket on this host's disk, for what is mapped into memory or read many times.

    ~/.cache/ssjax/buckets/DIGEST/NAME/...

The digest is that of the address and of the names, sizes and versions of the objects: a copy is
made once, never changes, and what is changed in the bucket is fetched anew. A copy appears in one
rename; processes that fetch the same at once do not disturb each other.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

from ssjax.errors import UserError
from ssjax.files import caches, gguf, places
from ssjax.files.writing import make_directory, writing
from ssjax.messages import say

_AT_ONCE = 8  # objects


def on_disk(path: Path, patterns: Sequence[str], *, nested: bool = False) -> Path:
    """A directory on a disk with the files of another one.

    Args:
      path: of `places.of`; one on a disk is itself the answer.
      patterns: of the names that are fetched.
      nested: those of directories in it, too.

    Raises:
      UserError: there is nothing of the kind, or no room for it.
    """
    if not places.is_bucket(path):
        return path
    found = {
        name: told
        for name, told in places.objects_below(path).items()
        if (nested or "/" not in name) and any(fnmatch.fnmatch(name, p) for p in patterns)
    }
    if not found:
        wanted = ", ".join(patterns)
        raise UserError(f"{path} does not exist or holds none of {wanted}; check the address")
    about = json.dumps([str(path), sorted(found.items())], sort_keys=True)
    root = caches.directory("buckets", "set XDG_CACHE_HOME")
    copy = root / hashlib.sha256(about.encode()).hexdigest()[:24]
    if not copy.is_dir():
        size = sum(told["size"] for told in found.values())
        say(f"fetching {path}: {len(found):,} files, {size / 1e6:,.1f} MB, to {copy}")
        _copy(path, found, copy)
    return copy / path.name


def file_on_disk(path: Path) -> Path:
    """The same for one file; of a split GGUF model with all its parts."""
    if not places.is_bucket(path):
        return path
    return on_disk(path.parent, [gguf.name_of_parts(path.name)]) / path.name


def _copy(path: Path, names: Sequence[str], target: Path) -> None:
    make_directory(target.parent)
    with writing(target):
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".incomplete-"))

    def fetch(name: str) -> None:
        file = temporary / path.name / name
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            places.fetch(path / name, file)

    try:
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(fetch, names))
        with writing(target):
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.is_dir():  # else somebody else was first, with the same
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

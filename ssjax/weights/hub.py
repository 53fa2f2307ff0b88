"""Where a model lies: in a directory, in a bucket, or in a repository of the Hugging Face hub.

A name is a hub id, such as facebook/opt-125m or facebook/opt-125m@REVISION, only where nothing
says that it is a path. A mistyped workdir is thus answered at once, and no hub is asked for it.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ssjax.config import Config
from ssjax.errors import UserError
from ssjax.files import fetching, places
from ssjax.files.gguf import is_gguf
from ssjax.messages import say_once

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9_./+-]*")  # as Git allows, no way upwards
_MODEL_FILES = ("model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


@dataclasses.dataclass(frozen=True)
class Location:
    """A directory with the files of a model.

    Attributes:
      directory: of the user, a snapshot in the hub's cache, or a copy of what is in a bucket; or a
        GGUF file.
      revision: the commit of the snapshot; empty: of the user.
    """

    directory: Path
    revision: str = ""


def locate(name: str, files: Sequence[str] = _MODEL_FILES) -> Location:
    """The directory of a model, which is fetched if it is on the hub or in a bucket.

    Args:
      name: a directory, an address, or a hub id with or without @REVISION (a branch, a tag, or a
        commit).
      files: patterns of the files that are fetched; by default config, tokenizer and weights.

    Raises:
      UserError: neither is there; one line.
    """
    if places.is_bucket(name):
        path = places.of(name)
        return Location(
            fetching.file_on_disk(path) if is_gguf(name) else fetching.on_disk(path, files)
        )
    if os.path.exists(name):
        return Location(Path(name))
    if is_gguf(name):
        raise UserError(f"{name} does not exist; give a GGUF file that does, or a directory")
    repository, at, revision = name.partition("@")
    if not _HUB_ID.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)):
        raise UserError(
            f"{name} is neither a directory nor a hub id such as facebook/opt-125m or "
            "facebook/opt-125m@main"
        )
    if not at and _is_path(name):
        raise UserError(
            f"{name} does not exist; give a directory that does, or {name}@main if a repository "
            "of the Hugging Face hub is meant"
        )
    return _fetch(name, repository, revision, files)


def is_here(name: str, file: str) -> bool:
    """Whether a file of a model can be read without the network.

    Args:
      name: as in `locate`.
      file: of a repository; whatever lies in a directory of the user is there.
    """
    import huggingface_hub

    if places.is_bucket(name) or os.path.exists(name):
        return True
    repository, _, revision = name.partition("@")
    if not _HUB_ID.fullmatch(repository):
        return False
    try:
        path = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
    except ValueError:  # no id that the hub allows, which is said when it is asked
        return False
    return isinstance(path, str)


def _is_path(name: str) -> bool:
    """Whether two words with a slash between them are the path of something that is not there."""
    first = name.partition("/")[0]
    return os.path.isdir(first) or first == Path(Config().workdir).parts[0]


def _fetch(name: str, repository: str, revision: str, files: Sequence[str]) -> Location:
    import huggingface_hub

    try:
        snapshot = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(files)
        )
    except Exception as error:  # the hub client raises some twenty kinds, of four libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no directory {name}, and cannot fetch {name!r} from the Hugging Face hub: "
            f"{reason[:300]}; check the id, the revision and the network (HF_TOKEN for gated "
            "models), or give a directory"
        ) from None
    directory = Path(snapshot)
    commit = directory.name if directory.parent.name == "snapshots" else revision
    say_once(f"{repository}: revision {commit} of the Hugging Face hub")
    return Location(directory, commit)

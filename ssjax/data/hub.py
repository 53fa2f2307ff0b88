"""Data sets of the Hugging Face hub or in a bucket: fetched as files, then read as any others.

    hub:owner/name                                all files of records of the repository
    hub:owner/name/data@main                      those of a folder, of a revision
    hub:owner/name/default@refs/convert/parquet   what the hub makes of sets in any form

    gs://my-bucket/data                           those of a directory, or one file

No code of a repository is run, and what the client of the hub has in its cache is not fetched
again.
"""

import functools
import re
from pathlib import Path

from ssjax.data.source_files import FORMATS
from ssjax.errors import UserError
from ssjax.files import fetching, places
from ssjax.messages import say_once

_PREFIX = "hub:"
_IN_BUCKETS = tuple(f"*{end}" for end in (*FORMATS, ".csv", ".json"))
_WORD = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"({_WORD}/{_WORD})((?:/{_WORD})*)(?:@({_WORD}(?:/{_WORD})*))?", re.ASCII)


def located(path: str) -> str:
    """Where the files of `data.path` lie: there, or fetched from the hub or a bucket.

    Raises:
      UserError: no such data set, or it cannot be fetched.
    """
    if not places.is_bucket(path):
        return _fetched(path) if path.startswith(_PREFIX) else path
    place = places.of(path)
    if path.endswith(FORMATS):
        return str(fetching.file_on_disk(place))
    return str(fetching.on_disk(place, _IN_BUCKETS, nested=True))


@functools.cache  # a start asks several times
def _fetched(path: str) -> str:
    import huggingface_hub

    match = _NAME.fullmatch(path.removeprefix(_PREFIX))
    if match is None:
        raise UserError(
            f"{path} is no data set of the hub; write {_PREFIX}OWNER/NAME, with /FOLDER and "
            "@REVISION if it has them"
        )
    repository, folder, revision = match[1], match[2].removeprefix("/"), match[3]
    patterns = [f"{folder}/*{end}" if folder else f"*{end}" for end in FORMATS]
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=patterns
        )
    except Exception as error:  # the hub client raises some twenty kinds, of four libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot fetch {path} from the Hugging Face hub: {reason[:300]}; check the name, the "
            "revision and the network (HF_TOKEN for gated data), or give a directory"
        ) from None
    directory = Path(snapshot, folder)
    if not directory.is_dir():
        raise UserError(
            f"{path}: no files of records there ({', '.join(FORMATS)}); name the folder that holds "
            f"them, or take {_PREFIX}{repository}/default@refs/convert/parquet"
        )
    say_once(f"{repository}: revision {Path(snapshot).name} of the Hugging Face hub")
    return str(directory)

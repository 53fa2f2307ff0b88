"""The data sets, prepared once by TFDS as array_record and read at random.

Prepared data is keyed by the bytes it was made from, so a changed file is prepared anew, and so is
what was damaged since.
"""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from ssjax.data.records import RecordSource
from ssjax.data.sources import Source, find_source
from ssjax.data.splits import SPLITS, Part, Reading
from ssjax.errors import UserError
from ssjax.files import caches, fetching, manifest, places

AS_THEY_ARE = Reading()


class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The splits of a task as TFDS writes them, in file order; the pipeline shuffles.

    Args:
      source: that reads them.
      parts: by split.
      **kwargs: of TFDS.
    """

    VERSION = tfds.core.Version("1.0.0")

    # Nothing is downloaded, so there are no checksums. Looking for them beside this module needs
    # importlib_resources, which TFDS 4.9.10 imports without requiring it.
    url_infos = None

    def __init__(self, *, source: Source, parts: Mapping[str, Part], **kwargs):
        self._source, self._parts = source, parts
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(part) for split, part in self._parts.items()}

    def _generate_examples(self, part):
        yield from enumerate(self._source.read(part))

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        with contextlib.closing(self._source.read(self._parts["train"])) as records:
            features = {
                name: text() if isinstance(value, str) else tfds.features.Sequence(text())
                for name, value in next(records).items()
            }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )


def prepare(
    task_name: str, path: str, prepared_dir: str, seed: int, reading: Reading = AS_THEY_ARE
) -> Path:
    """Prepares all splits of a task, unless that has been done.

    Safe against being killed and against another process that does the same: the data is
    written aside and appears under its name in one rename.

    Args:
      task_name: a name that `get_task` knows.
      path: the files; empty: the generated sample.
      prepared_dir: where prepared data is kept; in a bucket, and in the user's cache on each host.
      seed: of the generated sample; not used with files.
      reading: how the files are read.

    Returns:
      A directory for `tfds.builder_from_directory`.

    Raises:
      UserError: a file is missing or malformed; the message names file and line.
    """
    source, parts = find_source(task_name, path, seed, reading)
    digest = hashlib.sha256(f"{task_name} {source.version}".encode())
    for split, part in parts.items():
        digest.update(f" {split} {source.digest(part)}".encode())
    final = places.of(prepared_dir) / f"{task_name}-{digest.hexdigest()[:16]}"
    if places.is_bucket(final):
        final = _shared(source, parts, final)
    else:
        _prepare(source, parts, final)
    return final / Records.name / str(Records.VERSION)


def _shared(source: Source, parts: Mapping[str, Part], kept: Path) -> Path:
    """Prepared data that hosts share through a bucket; the directory on the disk of this one."""
    if manifest.exists(kept):
        copy = fetching.on_disk(kept, ["*"], nested=True)
        if _is_whole(copy):
            return copy
    final = caches.directory("prepared", "set XDG_CACHE_HOME") / kept.name
    _prepare(source, parts, final)
    for name in sorted(places.files_below(final), key=manifest.is_list):  # the list is put last
        places.put(final / name, kept / name)
    return final


def _prepare(source: Source, parts: Mapping[str, Part], final: Path) -> None:
    """Prepares all splits, unless they are there. Raises: UserError."""
    parent = final.parent
    try:
        if not _is_whole(final):
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=parent, prefix=".incomplete-", ignore_cleanup_errors=True
            ) as temporary:
                data_dir = Path(temporary) / "data"
                data_dir.mkdir()  # the temporary one keeps others out, who may share the data
                _write(source, parts, data_dir)
                manifest.write(data_dir, {})
                _rename(data_dir, final)
    except (OSError, RuntimeError) as error:  # the latter by the writer of array_record
        reason = getattr(error, "strerror", None) or str(error).split("; ")[0]
        raise UserError(
            f"cannot write prepared data to {parent}: {reason}; "
            "choose another directory with --config.data.prepared_dir=DIR"
        ) from error


def digests(task_name: str, path: str, seed: int, reading: Reading = AS_THEY_ARE) -> dict[str, str]:
    """SHA-256 of what each split is made from, wherever that lies.

    Args:
      task_name, path, seed, reading: as in `prepare`.

    Raises:
      UserError: a file is missing.
    """
    source, parts = find_source(task_name, path, seed, reading)
    return {split: source.digest(part) for split, part in parts.items()}


def split_names(
    task_name: str, path: str, seed: int, reading: Reading = AS_THEY_ARE
) -> tuple[str, ...]:
    """The splits that there are. Arguments, errors: as in `digests`."""
    return tuple(find_source(task_name, path, seed, reading)[1])


def open_source(
    task_name: str,
    path: str,
    prepared_dir: str,
    seed: int,
    split: str,
    reading: Reading = AS_THEY_ARE,
) -> RecordSource:
    """Opens one split of a task, preparing the task first where needed.

    Args:
      task_name, path, prepared_dir, seed, reading: as in `prepare`.
      split: train, validation or test.

    Raises:
      UserError: as `prepare`, or the split is not known or not there.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if split not in split_names(task_name, path, seed, reading):
        raise UserError(
            f"{path} has no {split} split; give its file, --config.data.{split}_share, or another "
            "split"
        )
    return open_prepared(prepare(task_name, path, prepared_dir, seed, reading), split)


def open_prepared(directory: Path, split: str) -> RecordSource:
    """Opens one split of what `prepare` returned."""
    with _quiet():
        builder = tfds.builder_from_directory(directory)
        return RecordSource(builder.as_data_source(split=split), directory, split)


def _write(source: Source, parts: Mapping[str, Part], data_dir: Path) -> None:
    """Prepares all splits below data_dir."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with _quiet():
        builder = Records(source=source, parts=parts, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(download_config=config)


def _is_whole(directory: Path) -> bool:
    """Whether prepared data is as it was written; looked at again only where a file has changed."""
    if not manifest.exists(directory):
        return False
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    status = [(str(path), path.stat()) for path in files]
    return _found_whole(directory, tuple((n, s.st_size, s.st_mtime_ns) for n, s in status))


@functools.lru_cache(maxsize=100)
def _found_whole(directory: Path, files: tuple) -> bool:
    del files
    return not manifest.damage(directory)


def _rename(temporary: Path, final: Path) -> None:
    """Puts finished data in its place; whoever came first wins, the contents are equal."""
    if final.exists() and not _is_whole(final):
        shutil.rmtree(final)
    try:
        os.rename(temporary, final)
    except OSError:
        if not final.exists():
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from printing: stdout belongs to results, stderr to our own lines."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)

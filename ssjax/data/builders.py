"""The data sets as TFDS builders, prepared once as array_record and read at random.

No TensorFlow is needed, and nothing is downloaded: the builders read the files that their
authors publish, or the generated sample. Prepared data is keyed by the bytes it was made from,
so a changed file is prepared anew, and so is what was damaged since. Records are kept as they are,
but for the white space inside E2E references.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from ssjax.data import sample
from ssjax.data.columns import Columns
from ssjax.data.tasks import CHAT, DIALOGSUM, E2E_NLG, PAIRS, SQL_CONTEXT, OwnTask, get_task
from ssjax.errors import UserError
from ssjax.files import manifest
from ssjax.files.reading import decode_text, parse_json_object, read_bytes, split_lines

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SourceFile:
    """What a split is made from. name is for messages only; a sample has no file."""

    name: str
    data: bytes

    def error(self, line: int, problem: str) -> UserError:
        """One line that an editor can jump to."""
        return UserError(f"{self.name}:{line}: {problem}")

    def lines(self) -> list[str]:
        """The lines of the content. Raises: UserError with the line that is not UTF-8."""
        return split_lines(decode_text(self.data, self.name))


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads one source file per split, in file order."""

    VERSION = tfds.core.Version("1.0.0")

    # Nothing is downloaded, so there are no checksums. Looking for them beside this module needs
    # importlib_resources, which TFDS 4.9.10 imports without requiring it.
    url_infos = None

    def __init__(self, *, files: Mapping[str, SourceFile], **kwargs):
        self._files = files
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split, file) for split, file in self._files.items()}

    def _dataset_info(self, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # file order is kept; the pipeline shuffles
        )


class Dialogsum(_Builder, skip_registration=True):
    """Dialogues with one summary, or in the test split three."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info(
            {
                "fname": text(),
                "dialogue": text(),
                "topic": text(),
                "summaries": tfds.features.Sequence(text()),
            }
        )

    def _generate_examples(self, split, file):
        del split  # the number of summaries is seen from the fields
        yield from enumerate(_dialogsum_records(file))


class E2eNlg(_Builder, skip_registration=True):
    """Meaning representations (mr) with one reference in train, else with all of them."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"mr": text(), "references": tfds.features.Sequence(text())})

    def _generate_examples(self, split, file):
        pairs = _e2e_pairs(file)
        if split == "train":
            records = ({"mr": mr, "references": (reference,)} for mr, reference in pairs)
        else:
            grouped: dict[str, list[str]] = {}
            for mr, reference in pairs:
                grouped.setdefault(mr, []).append(reference)
            records = ({"mr": mr, "references": texts} for mr, texts in grouped.items())
        yield from enumerate(records)


class SqlContext(_Builder, skip_registration=True):
    """A CREATE TABLE context with a question, and the SQL that answers it."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"context": text(), "question": text(), "answer": text()})

    def _generate_examples(self, split, file):
        del split
        for number, (line, record) in enumerate(_json_lines(file)):
            names = ("context", "question", "answer")
            yield number, {n: _field(file, line, record, n, may_be_blank=False) for n in names}


class Pairs(_Builder, skip_registration=True):
    """Prompts and the responses that continue them, as they are."""

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"prompt": text(), "response": text()})

    def _generate_examples(self, split, file):
        del split
        for number, (line, record) in enumerate(_json_lines(file)):
            names = ("prompt", "response")
            yield number, {n: _field(file, line, record, n, may_be_blank=False) for n in names}


class Chat(_Builder, skip_registration=True):
    """Conversations, one record for each answer of the assistant with all that came before."""

    VERSION = tfds.core.Version("1.1.0")  # 1.1.0: line

    def _info(self):
        text = tfds.features.Text
        return self._dataset_info({"messages": text(), "answer": text(), "line": text()})

    def _generate_examples(self, split, file):
        del split
        number = 0
        for line, record in _json_lines(file):
            messages = _conversation(file, line, record)
            # Without the directory: prepared data is shared by equal files wherever they are.
            place = f"{Path(file.name).name}:{line}"
            for end, message in enumerate(messages):
                if message["role"] == "assistant":
                    asked = json.dumps(messages[:end], ensure_ascii=False)
                    answer = message["content"]
                    yield number, {"messages": asked, "answer": answer, "line": place}
                    number += 1


class Own(_Builder, skip_registration=True):
    """Records that `_own_lines` wrote, of texts and lists of texts."""

    def _info(self):
        text = tfds.features.Text
        record = json.loads(self._files["train"].lines()[0])
        return self._dataset_info(
            {
                name: text() if isinstance(value, str) else tfds.features.Sequence(text())
                for name, value in record.items()
            }
        )

    def _generate_examples(self, split, file):
        del split
        for number, line in enumerate(file.lines()):
            yield number, json.loads(line)


@dataclass(frozen=True)
class _Published:
    """Where the files of a task come from and what they are called."""

    builder: type[_Builder]
    file_names: Mapping[str, str]
    url: str
    make_sample: Callable[[int], dict[str, SourceFile]] | None


def _sample_files(seed: int) -> dict[str, SourceFile]:
    """The generated sample in the form of the published files."""
    return {
        split: SourceFile(
            name=f"sample/{split}.jsonl",
            data="".join(f"{json.dumps(record)}\n" for record in records).encode(),
        )
        for split, records in sample.generate(sample.SPLIT_SIZES, seed).items()
    }


_JSON_LINES = {split: f"{split}.jsonl" for split in SPLITS}

_PUBLISHED = {
    DIALOGSUM.name: _Published(
        builder=Dialogsum,
        file_names=_JSON_LINES,
        url="https://github.com/cylnlp/dialogsum (DialogSum_Data/dialogsum.{train,dev,test}.jsonl)",
        make_sample=_sample_files,
    ),
    E2E_NLG.name: _Published(
        builder=E2eNlg,
        file_names={
            "train": "trainset.csv",
            "validation": "devset.csv",
            "test": "testset_w_refs.csv",
        },
        url="https://github.com/tuetschek/e2e-dataset",
        make_sample=None,
    ),
    SQL_CONTEXT.name: _Published(
        builder=SqlContext,
        file_names=_JSON_LINES,
        url="https://huggingface.co/datasets/b-mc2/sql-create-context without splits: cut its one "
        "array into these, an object a line with context, question and answer",
        make_sample=None,
    ),
    PAIRS.name: _Published(
        builder=Pairs,
        file_names=_JSON_LINES,
        url="your own data, an object a line with prompt and response",
        make_sample=None,
    ),
    CHAT.name: _Published(
        builder=Chat,
        file_names=_JSON_LINES,
        url="your own data, an object a line with messages (or ShareGPT's conversations)",
        make_sample=None,
    ),
}


def _published(task_name: str) -> _Published:
    """Raises: UserError for a name that is not known."""
    task = get_task(task_name)
    if not isinstance(task, OwnTask):
        return _PUBLISHED[task_name]
    columns = task.columns
    named = f" with {', '.join(columns.names)} and {columns.answer}" if columns.read is None else ""
    return _Published(
        builder=Own,
        file_names=_JSON_LINES,
        url=f"your own data, an object a line{named}",
        make_sample=None,
    )


class RecordSource(Sequence):
    """A prepared split: `len`, and records by number as dicts of str and tuple[str, ...]."""

    def __init__(self, encoded: Sequence[Mapping[str, Any]]):
        """encoded: a TFDS data source, whose texts are bytes."""
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return {
            field: value.decode() if isinstance(value, bytes) else tuple(v.decode() for v in value)
            for field, value in self._encoded[index % len(self)].items()
        }


def prepare(task_name: str, path: str, prepared_dir: str, seed: int) -> Path:
    """Prepares all splits of a task, unless that has been done.

    Safe against being killed and against another process that does the same: the data is
    written aside and appears under its name in one rename.

    Args:
      task_name: a name that `get_task` knows.
      path: directory with the published files; empty: the generated sample.
      prepared_dir: where prepared data is kept.
      seed: of the generated sample; not used with files.

    Returns:
      A directory for `tfds.builder_from_directory`.

    Raises:
      UserError: a file is missing or malformed; the message names file and line.
    """
    published = _published(task_name)
    files = _read_files(task_name, path, seed)
    version = published.builder.VERSION
    digest = hashlib.sha256(f"{task_name} {version}".encode())
    for split, file in files.items():
        digest.update(f" {split} {len(file.data)} ".encode() + file.data)
    parent = Path(prepared_dir)
    final = parent / f"{task_name}-{digest.hexdigest()[:16]}"
    try:
        if not _is_whole(final):
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=parent, prefix=".incomplete-", ignore_cleanup_errors=True
            ) as temporary:
                data_dir = Path(temporary) / "data"
                data_dir.mkdir()  # the temporary one keeps others out, who may share the data
                _write(published.builder, files, data_dir)
                manifest.write(data_dir, {})
                _rename(data_dir, final)
    except (OSError, RuntimeError) as error:  # the latter by the writer of array_record
        reason = getattr(error, "strerror", None) or str(error).split("; ")[0]
        raise UserError(
            f"cannot write prepared data to {prepared_dir}: {reason}; "
            "choose another directory with --config.data.prepared_dir=DIR"
        ) from error
    return final / published.builder.name / str(version)


def digests(task_name: str, path: str, seed: int) -> dict[str, str]:
    """SHA-256 of what each split is made from, wherever that lies.

    Args:
      task_name, path, seed: as in `prepare`.

    Raises:
      UserError: a file is missing.
    """
    files = _read_files(task_name, path, seed)
    return {split: hashlib.sha256(file.data).hexdigest() for split, file in files.items()}


def open_source(
    task_name: str, path: str, prepared_dir: str, seed: int, split: str
) -> RecordSource:
    """Opens one split of a task, preparing the task first where needed.

    Args:
      task_name, path, prepared_dir, seed: as in `prepare`.
      split: train, validation or test.

    Raises:
      UserError: as `prepare`, or the split is not known.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    directory = prepare(task_name, path, prepared_dir, seed)
    with _quiet():
        builder = tfds.builder_from_directory(directory)
        return RecordSource(builder.as_data_source(split=split))


def _read_files(task_name: str, path: str, seed: int) -> dict[str, SourceFile]:
    """Reads what the splits are made from. Raises: UserError naming what is missing."""
    published = _published(task_name)
    expected = f"the files {', '.join(published.file_names.values())}, from {published.url}"
    if not path:
        if published.make_sample is None:
            raise UserError(
                f"{task_name} has no generated sample: pass --config.data.path=DIR, "
                f"a directory with {expected}"
            )
        return published.make_sample(seed)
    if not os.path.isdir(path):
        raise UserError(f"{path} is not a directory: --config.data.path should hold {expected}")
    files = {}
    for split, name in published.file_names.items():
        file = Path(path) / name
        hint = f"--config.data.path should hold {expected}"
        files[split] = SourceFile(str(file), read_bytes(file, hint))
    task = get_task(task_name)
    if isinstance(task, OwnTask):  # so that prepared data is keyed by what its function makes
        return {split: _own_lines(file, task.columns) for split, file in files.items()}
    return files


def _write(builder: type[_Builder], files: Mapping[str, SourceFile], data_dir: Path) -> None:
    """Prepares all splits below data_dir."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with _quiet():
        builder(files=files, data_dir=data_dir, file_format="array_record").download_and_prepare(
            download_config=config
        )


def _is_whole(directory: Path) -> bool:
    return manifest.exists(directory) and not manifest.damage(directory)


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


def _dialogsum_records(file: SourceFile) -> Iterator[dict[str, Any]]:
    """Parses DialogSum's JSON lines; the many topics of a test record are cut to the first."""
    for number, record in _json_lines(file):
        names = ["summary"]
        if "summary" not in record and "summary1" in record:
            names = [f"summary{i}" for i in range(1, len(record)) if f"summary{i}" in record]
        topic = "topic1" if "topic" not in record and "topic1" in record else "topic"
        yield {
            "fname": _field(file, number, record, "fname", may_be_blank=True),
            "dialogue": _field(file, number, record, "dialogue", may_be_blank=False),
            "topic": _field(file, number, record, topic, may_be_blank=True),
            "summaries": [_field(file, number, record, name, may_be_blank=False) for name in names],
        }


def _json_lines(file: SourceFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file with their line numbers; blank lines are passed over."""
    lines = file.lines()
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("["):  # an array may go on over many lines
            raise file.error(number, "expected a JSON object, found list; write one object a line")
        if line.strip():
            yield (
                number,
                parse_json_object(line, f"{file.name}:{number}", "write one object a line"),
            )
    if not "".join(lines).strip():
        raise file.error(1, "the file is empty; expected one JSON object a line")


def _own_lines(file: SourceFile, columns: Columns) -> SourceFile:
    """The records of a user's own file, an object a line with the columns of its task."""
    records = []
    for number, line in _json_lines(file):
        record = line if columns.read is None else _own_columns(file, number, line, columns.read)
        if record is None:
            continue
        texts = {n: _field(file, number, record, n, may_be_blank=True) for n in columns.names}
        given = record.get(columns.answer)
        answers = given if isinstance(given, list | tuple) and given else [given]
        named = [record | {columns.answer: answer} for answer in answers]
        if columns.answer not in record:
            named = [record]
        texts[columns.answer] = [
            _field(file, number, each, columns.answer, may_be_blank=False) for each in named
        ]
        records.append(json.dumps(texts))
    if not records:
        raise file.error(1, "no line is left; expected some that read does not leave out")
    return SourceFile(file.name, "\n".join(records).encode())


def _own_columns(
    file: SourceFile, number: int, line: dict[str, Any], read: Callable
) -> dict[str, Any] | None:
    """What a user's function makes of a line."""
    try:
        record = read(line)
    except Exception as error:  # a function of the user may raise anything
        raise file.error(number, f"read of the task: {type(error).__name__}: {error}") from error
    if record is not None and not isinstance(record, Mapping):
        kind = type(record).__name__
        raise file.error(number, f"read of the task should return columns, found {kind}")
    return None if record is None else dict(record)


# ShareGPT's names of the roles.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES |= {"system": "system"}


def _conversation(file: SourceFile, line: int, record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Checks one conversation, in either form, and brings it into messages."""
    form = "messages" if "messages" in record else "conversations"
    turns = record.get(form)
    if not isinstance(turns, list) or not turns:
        raise file.error(line, 'expected a list "messages" (or "conversations") of turns')
    role_key, text_key = ("role", "content") if form == "messages" else ("from", "value")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise file.error(line, f"a turn should be an object, found {type(turn).__name__}")
        role = _field(file, line, turn, role_key, may_be_blank=False)
        if role not in _ROLES:
            raise file.error(line, f"unknown role {role!r}: use {', '.join(_ROLES)}")
        if _ROLES[role] == "system" and messages:
            raise file.error(line, "a system message can only come first")
        content = _field(file, line, turn, text_key, may_be_blank=False)
        messages.append({"role": _ROLES[role], "content": content})
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles[:1] != ["user"]:
        raise file.error(line, "a conversation should begin with the user")
    if "assistant" not in roles:
        raise file.error(line, "no turn of the assistant: there is nothing to learn")
    return messages


def _field(
    file: SourceFile, line: int, record: Mapping[str, Any], name: str, *, may_be_blank: bool
) -> str:
    """Checks one text of a record."""
    if name not in record:
        raise file.error(line, f'field "{name}" is missing; the line has {", ".join(record)}')
    value = record[name]
    if not isinstance(value, str):
        raise file.error(line, f'field "{name}" should be text, found {type(value).__name__}')
    if not (may_be_blank or value.strip()):
        raise file.error(line, f'field "{name}" is empty; fill it in or take the line out')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise file.error(line, f'field "{name}" holds half of a surrogate pair') from error
    return value


def _e2e_pairs(file: SourceFile) -> Iterator[tuple[str, str]]:
    """Parses the rows of an E2E CSV file into (mr, reference)."""
    lines = [f"{line}\n" for line in file.lines()]
    known = csv.field_size_limit(1 + sum(map(len, lines)))  # its own is 131,072 characters
    try:
        yield from _checked_rows(file, csv.reader(lines, strict=True))
    finally:
        csv.field_size_limit(known)


def _checked_rows(file: SourceFile, rows) -> Iterator[tuple[str, str]]:
    """rows: of `csv.reader`."""
    line = 1  # where the row at hand begins; a quoted text may span several
    num_rows = 0
    try:
        header = next(rows, [])
        if header != ["mr", "ref"]:
            raise file.error(line, f"expected the header mr,ref, found {','.join(header)!r}")
        line = rows.line_num + 1
        for row in rows:
            if row:
                yield _e2e_pair(file, line, row)
                num_rows += 1
            line = rows.line_num + 1
    except csv.Error as error:
        raise file.error(line, f"not a row of comma-separated values: {error}") from error
    if not num_rows:
        raise file.error(line, "no rows follow the header mr,ref")


def _e2e_pair(file: SourceFile, line: int, row: list[str]) -> tuple[str, str]:
    """Checks one row."""
    if len(row) != 2:
        raise file.error(line, f"expected 2 columns (mr, ref), found {len(row)}")
    for name, value in zip(("mr", "ref"), row, strict=True):
        if not value.strip():
            raise file.error(line, f'column "{name}" is empty; fill it in or take the row out')
    return row[0], " ".join(row[1].split())

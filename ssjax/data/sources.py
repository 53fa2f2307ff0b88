"""The data sets of the tasks: what their files are called, where they come from, what is read.

Nothing is downloaded: read are the files that their authors publish, those of the user, or the
generated sample.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssjax.data import distilled, hub, sample
from ssjax.data.columns import Columns
from ssjax.data.lines import conversation, dialogsum_record, e2e_pairs, field, own_record
from ssjax.data.source_files import Place, Raw, SourceFile
from ssjax.data.splits import SPLITS, Part, Reading, find_parts
from ssjax.data.tasks import CHAT, DIALOGSUM, E2E_NLG, PAIRS, SQL_CONTEXT, OwnTask, get_task
from ssjax.errors import UserError

Records = Iterator[dict[str, Any]]  # of texts and lists of texts, all with the same fields


@dataclass(frozen=True)
class Source:
    """Where the records of a task come from, and what is made of them."""

    read: Callable[[Part], Records]  # in file order
    version: str  # of what is made of the same files
    names: str  # of the files, for messages
    url: str
    make_sample: Callable[[int], dict[str, SourceFile]] | None = None
    published: Mapping[str, str] | None = None  # by split, files of a form of their own
    # Whether the records and not the files are what tells one data set from another, because a
    # function of the user makes them.
    by_records: bool = False
    # Of these, what decides the records beside the files; empty: a function that may do anything.
    definition: str = ""

    @property
    def expected(self) -> str:
        """What a directory should hold, for messages."""
        return f"the files {self.names}, from {self.url}"

    def digest(self, part: Part) -> str:
        """SHA-256 of what a split is made from, wherever that lies. Raises: UserError."""
        if not self.by_records:
            plain = part.shares is None and not part.columns
            return part.digest() if plain else hashlib.sha256(part.identity().encode()).hexdigest()
        if not self.definition:
            return self._digest_of_records(part)
        known = (self.definition, part.split, part.identity())
        if known not in _DIGESTS:
            _DIGESTS[known] = self._digest_of_records(part)
        return _DIGESTS[known]

    def _digest_of_records(self, part: Part) -> str:
        digest = hashlib.sha256()
        for number, record in enumerate(self.read(part)):
            digest.update(b"\n" * (number > 0) + json.dumps(record).encode())
        return digest.hexdigest()


# A start of a run asks several times, and reading all records takes a while.
_DIGESTS: dict[tuple[str, str, str], str] = {}


def _reader(
    make: Callable[[Place, Raw], list[dict[str, Any]]], asked: tuple[str, ...]
) -> Callable[[Part], Records]:
    """Reads what `make` makes of each record of the files.

    Args:
      make: the records of the task that one of the files becomes.
      asked: fields of the first of them that say what is asked, by which shares go.
    """

    def read(part: Part) -> Records:
        num_records = 0
        for place, raw in part.records():
            records = make(place, raw)
            if records and part.holds("\n".join(records[0][name] for name in asked)):
                yield from records
                num_records += len(records)
        if not num_records:
            raise part.empty()

    return read


def _texts_of(names: tuple[str, ...]) -> Callable[[Place, Raw], list[dict[str, Any]]]:
    return lambda place, raw: [
        {name: field(place, raw, name, may_be_blank=False) for name in names}
    ]


def _answers_of_chat(place: Place, raw: Raw) -> list[dict[str, Any]]:
    """One record for each answer of the assistant, with all that came before."""
    messages = conversation(place, raw)
    # Without the directory: prepared data is shared by equal files wherever they are.
    line = str(Place(Path(place.file).name, place.number, place.unit))
    return [
        {
            "messages": json.dumps(messages[:end], ensure_ascii=False),
            "answer": message["content"],
            "line": line,
        }
        for end, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def _read_e2e(part: Part) -> Records:
    """Meaning representations (mr) with one reference in train, else with all of them."""
    (file,) = part.files
    if part.split == "train":
        for mr, reference in e2e_pairs(file):
            yield {"mr": mr, "references": [reference]}
        return
    grouped: dict[str, list[str]] = {}
    for mr, reference in e2e_pairs(file):
        grouped.setdefault(mr, []).append(reference)
    for mr, references in grouped.items():
        yield {"mr": mr, "references": references}


def _read_kept(part: Part) -> Records:
    """Records that `ssjax.distill` wrote, as they are."""
    known = None
    for place, record in part.records():
        known = known or record.keys()
        if record.keys() != known:
            raise place.error(f"expected the fields {', '.join(known)} as in line 1")
        yield record


def _own_records(columns: Columns) -> Callable[[Place, Raw], list[dict[str, Any]]]:
    return lambda place, raw: [r] if (r := own_record(place, raw, columns)) is not None else []


def _sample_files(seed: int) -> dict[str, SourceFile]:
    """The generated sample in the form of the published files."""
    return {
        split: SourceFile(
            name=f"sample/{split}.jsonl",
            data="".join(f"{json.dumps(record)}\n" for record in records).encode(),
        )
        for split, records in sample.generate(sample.SPLIT_SIZES, seed).items()
    }


_NAMES = ", ".join(f"{split}.jsonl" for split in SPLITS)
_E2E_FILES = {
    "train": "trainset.csv",
    "validation": "devset.csv",
    "test": "testset_w_refs.csv",
}
_SQL_NAMES = ("context", "question", "answer")

_SOURCES = {
    DIALOGSUM.name: Source(
        read=_reader(lambda place, raw: [dialogsum_record(place, raw)], ("dialogue",)),
        version="1.0.0",
        names=_NAMES,
        url="https://github.com/cylnlp/dialogsum (DialogSum_Data/dialogsum.{train,dev,test}.jsonl)",
        make_sample=_sample_files,
    ),
    E2E_NLG.name: Source(
        read=_read_e2e,
        version="1.0.0",
        names=", ".join(_E2E_FILES.values()),
        url="https://github.com/tuetschek/e2e-dataset",
        published=_E2E_FILES,
    ),
    SQL_CONTEXT.name: Source(
        read=_reader(_texts_of(_SQL_NAMES), ("context", "question")),
        version="1.0.0",
        names=_NAMES,
        url="https://huggingface.co/datasets/b-mc2/sql-create-context without splits: cut its one "
        "array into these, an object a line with context, question and answer",
    ),
    PAIRS.name: Source(
        read=_reader(_texts_of(("prompt", "response")), ("prompt",)),
        version="1.0.0",
        names=_NAMES,
        url="your own data, an object a line with prompt and response",
    ),
    CHAT.name: Source(
        read=_reader(_answers_of_chat, ("messages",)),
        version="1.1.0",  # 1.1.0: line
        names=_NAMES,
        url="your own data, an object a line with messages (or ShareGPT's conversations)",
    ),
}


def source_of(task_name: str, path: str = "") -> Source:
    """What a task reads in a directory.

    Raises:
      UserError: a name that is not known, or a directory that was distilled for another task.
    """
    task = get_task(task_name)
    if distilled.check_task(path, task_name):
        return Source(_read_kept, "1.0.0", _NAMES, "python -m ssjax.distill")
    if not isinstance(task, OwnTask):
        return _SOURCES[task_name]
    columns = task.columns
    named = f" with {', '.join(columns.names)} and {columns.answer}" if columns.read is None else ""
    return Source(
        read=_reader(_own_records(columns), columns.names),
        version="1.0.0",
        names=_NAMES,
        url=f"your own data, an object a line{named}",
        by_records=True,
        definition=f"{columns.names} {columns.answer}" if columns.read is None else "",
    )


def find_source(
    task_name: str, path: str, seed: int, reading: Reading
) -> tuple[Source, dict[str, Part]]:
    """What a task reads, and the splits to read. Raises: UserError naming what is missing."""
    path = hub.located(path)
    source = source_of(task_name, path)
    if not path:
        if source.make_sample is None:
            raise UserError(
                f"{task_name} has no generated sample: pass --config.data.path=DIR, "
                f"a directory with {source.expected}"
            )
        if reading.columns or reading.shares:
            raise UserError(
                "data.columns and shares are for files, and data.path is empty: the generated "
                "sample has its columns and splits"
            )
        files = source.make_sample(seed)
        return source, {split: Part(split, (file,)) for split, file in files.items()}
    if not os.path.exists(path):
        raise UserError(
            f"{path} is not a directory: --config.data.path should hold {source.expected}"
        )
    if source.published is None:
        return source, find_parts(path, reading, source.expected)
    if reading.columns or reading.shares:
        raise UserError(
            f"data.columns and shares are not for {task_name}, whose published files are read; "
            "give data.task=pairs, or a task of your own, for other files"
        )
    if not os.path.isdir(path):
        raise UserError(
            f"{path} is not a directory: --config.data.path should hold {source.expected}"
        )
    parts = {}
    for split in reading.splits:
        file = Path(path) / source.published[split]
        if not file.is_file():
            raise UserError(
                f"{file}: No such file; --config.data.path should hold {source.expected}"
            )
        parts[split] = Part(split, (SourceFile(str(file)),))
    return source, parts

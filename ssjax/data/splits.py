"""Which files, and which of their records, make up each split.

    train.jsonl  train.jsonl.gz  train.parquet      a file a split
    train-00000-of-00008.parquet  ...               shards
    train/*.jsonl.gz                                a directory of them
    answers.jsonl, a directory of any names         all records, divided by shares

A share is a function of what is asked in a record and of `data.split_seed`: neither the order of
records, nor files, nor records that come later move one from a split to another, and what is asked
twice is never both trained on and tested.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ssjax.config import DataConfig
from ssjax.data.source_files import FORMATS, Place, Raw, SourceFile
from ssjax.errors import UserError

SPLITS = ("train", "validation", "test")

_SHARD = re.compile(r"-(\d+)-of-(\d+)$")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records are read; see `DataConfig` for all of it."""

    columns: tuple[str, ...] = ()
    validation_share: float = 0.0
    test_share: float = 0.0
    split_seed: int = 0
    splits: tuple[str, ...] = SPLITS  # that are wanted

    @classmethod
    def of(cls, data: DataConfig) -> "Reading":
        """That of a run."""
        return cls(data.columns, data.validation_share, data.test_share, data.split_seed)

    def of_train(self) -> "Reading":
        """Of data that is trained on alone; what shares would hold out is left out there, too."""
        return dataclasses.replace(self, splits=("train",))

    @property
    def shares(self) -> dict[str, float]:
        """By split, those that are asked for."""
        shares = {"validation": self.validation_share, "test": self.test_share}
        return {split: share for split, share in shares.items() if share}

    def names_of(self) -> dict[str, str]:
        """Columns of the files by the names that the task has for them."""
        return dict(each.split("=", 1) for each in self.columns)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Parts of a set of records."""

    sizes: tuple[tuple[str, float], ...]  # (split, share); the rest is train
    seed: int

    def split_of(self, asked: str) -> str:
        """Where a record belongs.

        Args:
          asked: what is asked in it.
        """
        content = f"{self.seed}\n{asked}".encode(errors="surrogatepass")
        place = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64
        for split, share in self.sizes:
            if place < share:
                return split
            place -= share
        return "train"


@dataclasses.dataclass(frozen=True)
class Part:
    """What a split is read from."""

    split: str
    files: tuple[SourceFile, ...]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shares: Shares | None = None  # None: all records of the files

    def records(self) -> Iterator[tuple[Place, Raw]]:
        """All records of the files, with the names of the task. Raises: UserError."""
        for file in self.files:
            for place, record in file.records():
                yield place, self._renamed(place, record) if self.columns else record

    def holds(self, asked: str) -> bool:
        """Whether a record of the files belongs to the split."""
        return self.shares is None or self.shares.split_of(asked) == self.split

    def digest(self) -> str:
        """SHA-256 of what the files hold, wherever they lie. Raises: UserError."""
        digests = [file.digest() for file in self.files]
        return digests[0] if len(digests) == 1 else _sha256(" ".join(digests))

    def identity(self) -> str:
        """Of the content, and of all else that decides the records."""
        return f"{self.digest()} {sorted(self.columns.items())} {self.shares}"

    def empty(self) -> UserError:
        """What to say if no record is left."""
        where = self.files[0].name if len(self.files) == 1 else f"{len(self.files)} files"
        if self.shares is None:
            return Place(where, 1).error(
                "no line is left; expected some that read does not leave out"
            )
        return UserError(
            f"no record of {where} falls to the {self.split} split; give larger shares "
            "(--config.data.validation_share, --config.data.test_share), or another split_seed"
        )

    def _renamed(self, place: Place, record: Raw) -> Raw:
        for column in self.columns.values():
            if column not in record:
                raise place.error(
                    f'column "{column}" of data.columns is missing; the {place.unit} has '
                    f"{', '.join(record)}"
                )
        return record | {name: record[column] for name, column in self.columns.items()}


def find_parts(path: str, reading: Reading, expected: str) -> dict[str, Part]:
    """The splits of a file or a directory.

    Args:
      path: that exists.
      reading: how they are read.
      expected: what the path should hold, for messages.

    Raises:
      UserError: a split other than test is missing, one is there twice, or lacks a shard.
    """
    if os.path.isfile(path):
        if not path.endswith(FORMATS):
            raise UserError(
                f"{path} is not a directory, and no file of records by its name ("
                f"{', '.join(FORMATS)}): --config.data.path should hold {expected}"
            )
        found: dict[str, list[Path]] = {}
        pool = [Path(path)]
    else:
        found = {split: _files_of(Path(path), split) for split in reading.splits}
        pool = found["train"]
        if not any(found.values()) and (reading.shares or reading.splits == ("train",)):
            pool = _data_files(Path(path))
            _check_shards(pool)
    shares = reading.shares
    for split in reading.splits[1:]:
        if found.get(split) and split in shares:
            raise UserError(
                f"{found[split][0]} is there, and data.{split}_share is {shares[split]:g}; give 0 "
                "to take the file, or take it away"
            )
        # Without one to test on, a model can be trained all the same.
        if not found.get(split) and split not in shares and split != "test":
            raise UserError(
                f"{path} has no {split} split: --config.data.path should hold {expected}; or give "
                f"--config.data.{split}_share, the share of the records that becomes one"
            )
    if not pool:
        raise UserError(f"{path} has no train split: --config.data.path should hold {expected}")
    columns = reading.names_of()
    divided = Shares(tuple(sorted(shares.items())), reading.split_seed) if shares else None
    parts = {}
    for split in reading.splits:
        if split == "test" and not found.get(split) and split not in shares:
            continue
        shared = split == "train" or split in shares
        files = pool if shared else found[split]
        sources = tuple(SourceFile(str(file)) for file in files)
        parts[split] = Part(split, sources, columns, divided if shared else None)
    return parts


def _files_of(directory: Path, split: str) -> list[Path]:
    """The files of a split. Raises: UserError: in two forms, or with a shard missing."""
    whole = [directory / f"{split}{end}" for end in FORMATS]
    shards = [file for file in _data_files(directory) if file.name.startswith(f"{split}-")]
    forms = [[file] for file in whole if file.exists()] + ([shards] if shards else [])
    if below := _data_files(directory / split):
        forms.append(below)
    if len(forms) > 1:
        raise UserError(
            f"{directory} has the {split} split twice, {forms[0][0].name} and "
            f"{forms[1][0].relative_to(directory)}; leave one"
        )
    if not forms:
        return []
    _check_shards(forms[0])
    return forms[0]


def _data_files(directory: Path) -> list[Path]:
    """Files of records in a directory, by name; none where there is no directory."""
    if not directory.is_dir():
        return []
    return sorted(file for file in directory.iterdir() if file.name.endswith(FORMATS))


def _check_shards(files: Sequence[Path]) -> None:
    """Raises: UserError: the names say that there are more."""
    found: dict[tuple[str, int], set[int]] = {}
    for file in files:
        stem, _, end = file.name.partition(".")
        if match := _SHARD.search(stem):
            found.setdefault((f"{stem[: match.start()]}-*.{end}", int(match[2])), set()).add(
                int(match[1])
            )
    for (names, count), numbers in found.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            raise UserError(
                f"{files[0].parent} lacks {len(missing)} of {count} shards {names}, the first "
                f"number {missing[0]}; fetch them all"
            )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

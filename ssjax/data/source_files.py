"""Files of records: JSON lines, packed by gzip or not, Parquet, and Arrow as `datasets` saves it.

    {"prompt": "Hi", "response": " Hello!"}       a line, a row

A file is read as a stream, whatever its size. What is wrong with it is one `UserError` that names
the file and the line or row.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ssjax.errors import UserError
from ssjax.files.reading import decode_text, parse_json_object, split_lines

Raw = dict[str, Any]  # a record as its file has it

# How the names of files of records end.
TABLES = (".parquet", ".arrow")
FORMATS = (".jsonl", ".jsonl.gz", *TABLES)

_ROWS = 1000  # of a table, turned into Python values at a time

# A file that was written this recently may be written again without a new time of its own.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """A record in a file, for messages."""

    file: str
    number: int  # from 1
    unit: str = "line"  # or row

    def __str__(self) -> str:
        """In the form that an editor can jump to, for lines."""
        return f"{self.file}{':' if self.unit == 'line' else ', row '}{self.number}"

    def error(self, problem: str) -> UserError:
        """One line that says where."""
        return UserError(f"{self}: {problem}")


@dataclass(frozen=True)
class SourceFile:
    """What records are read from."""

    name: str  # its path; of a sample, which has no file, for messages only
    data: bytes | None = None  # of a sample

    def digest(self) -> str:
        """SHA-256 of the content. Raises: UserError: it cannot be read."""
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        with self._reading():
            status = Path(self.name).stat()
            settled = time.time() - status.st_mtime > _SETTLED_SECONDS
            compute = _known_digest if settled else _digest
            return compute(self.name, status.st_size, status.st_mtime_ns)

    def lines(self) -> list[str]:
        """All lines of a text. Raises: UserError with the line that is not UTF-8."""
        with self._open() as stream:
            return split_lines(decode_text(stream.read(), self.name))

    def records(self) -> Iterator[tuple[Place, Raw]]:
        """The records with their places; blank lines are passed over.

        Raises:
          UserError: the file is damaged or empty, or a line is no JSON object.
        """
        read = self._rows if self.name.endswith(TABLES) else self._json_lines
        num_records = 0
        for found in read():
            yield found
            num_records += 1
        if num_records:
            return
        if self.name.endswith(TABLES):
            raise UserError(f"{self.name}: the table has no rows")
        raise Place(self.name, 1).error("the file is empty; expected one JSON object a line")

    def _json_lines(self):
        for number, line in enumerate(self._stream_lines(), start=1):
            place = Place(self.name, number)
            if line.lstrip().startswith("["):  # an array may go on over many lines
                raise place.error("expected a JSON object, found list; write one object a line")
            if line.strip():
                yield place, parse_json_object(line, str(place), "write one object a line")

    def _stream_lines(self):
        """Lines as of `split_lines`, one at a time."""
        number = 0
        with self._open() as stream:
            try:
                for number, line in enumerate(stream, start=1):
                    encoding = "utf-8-sig" if number == 1 else "utf-8"
                    text = line.removesuffix(b"\n").removesuffix(b"\r").decode(encoding)
                    yield text
            except UnicodeDecodeError:
                raise UserError(
                    f"{self.name}, line {number}: not UTF-8; convert the file"
                ) from None
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise Place(self.name, number + 1).error(
                    f"not gzip, or cut short ({error}); fetch the file again"
                ) from None

    def _rows(self):
        import pyarrow

        number = 0
        try:
            with contextlib.closing(self._batches()) as batches:
                for batch in batches:
                    batch.validate(full=True)  # of one that is damaged a value may crash Python
                    for row in batch.to_pylist():
                        number += 1
                        yield Place(self.name, number, "row"), row
        # Damaged pages are an OSError, too, and damaged names of columns no UTF-8.
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if getattr(error, "errno", None):
                raise UserError(f"{self.name}: {error.strerror}") from None
            reason = str(error).splitlines()[0]
            raise Place(self.name, number + 1, "row").error(
                f"not a table, or damaged ({reason:.200}); fetch the file again"
            ) from None

    def _batches(self):
        import pyarrow
        import pyarrow.parquet

        if self.name.endswith(".parquet"):
            with pyarrow.parquet.ParquetFile(self.name) as file:
                yield from file.iter_batches(batch_size=_ROWS, use_threads=False)
            return
        with pyarrow.memory_map(self.name) as file:  # as `datasets` writes it
            for batch in pyarrow.ipc.open_stream(file):
                yield from (batch.slice(i, _ROWS) for i in range(0, batch.num_rows, _ROWS))

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        if self.data is not None:
            yield io.BytesIO(self.data)
            return
        with self._reading():
            opened = gzip.open if self.name.endswith(".gz") else open
            with opened(self.name, "rb") as stream:
                yield stream

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What the system says of a file, as one line. Raises: UserError."""
        try:
            yield
        except gzip.BadGzipFile:  # an OSError, too
            raise
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise UserError(f"{self.name}: {reason}") from None


def _digest(path: str, size: int, time_ns: int) -> str:
    """Of a file; size and time of its last change tell whether it is still the same."""
    del size, time_ns
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# A start of a run asks several times, and files may be large.
_known_digest = functools.lru_cache(maxsize=10_000)(_digest)

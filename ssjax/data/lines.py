"""The records of a source file: its lines, checked and brought into the form of the task.

Whatever is wrong is one `UserError` that names file and line. Records are kept as they are, but for
the white space inside E2E references.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ssjax.data.columns import Columns
from ssjax.errors import UserError
from ssjax.files.reading import decode_text, parse_json_object, split_lines


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


def dialogsum_records(file: SourceFile) -> Iterator[dict[str, Any]]:
    """Parses DialogSum's JSON lines; the many topics of a test record are cut to the first."""
    for number, record in json_lines(file):
        names = ["summary"]
        if "summary" not in record and "summary1" in record:
            names = [f"summary{i}" for i in range(1, len(record)) if f"summary{i}" in record]
        topic = "topic1" if "topic" not in record and "topic1" in record else "topic"
        yield {
            "fname": field(file, number, record, "fname", may_be_blank=True),
            "dialogue": field(file, number, record, "dialogue", may_be_blank=False),
            "topic": field(file, number, record, topic, may_be_blank=True),
            "summaries": [field(file, number, record, name, may_be_blank=False) for name in names],
        }


def json_lines(file: SourceFile) -> Iterator[tuple[int, dict[str, Any]]]:
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


def own_lines(file: SourceFile, columns: Columns) -> SourceFile:
    """The records of a user's own file, an object a line with the columns of its task."""
    records = []
    for number, line in json_lines(file):
        record = line if columns.read is None else _as_read(file, number, line, columns.read)
        if record is not None:
            texts = {n: field(file, number, record, n, may_be_blank=True) for n in columns.names}
            texts[columns.answer] = _answers(file, number, record, columns.answer)
            records.append(json.dumps(texts))
    if not records:
        raise file.error(1, "no line is left; expected some that read does not leave out")
    return SourceFile(file.name, "\n".join(records).encode())


def kept_lines(file: SourceFile) -> SourceFile:
    """A file of records that were written as they are read, which all have the same fields."""
    known = None
    for number, record in json_lines(file):
        known = known or record.keys()
        if record.keys() != known:
            raise file.error(number, f"expected the fields {', '.join(known)} as in line 1")
    return file


def _as_read(
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


def _answers(file: SourceFile, number: int, record: dict[str, Any], name: str) -> list[str]:
    """A text, or the texts of a list that is not empty."""
    value = record.get(name)
    each = [record | {name: text} for text in value] if isinstance(value, list | tuple) else []
    return [field(file, number, one, name, may_be_blank=False) for one in each or [record]]


# ShareGPT's names of the roles.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES |= {"system": "system"}


def conversation(file: SourceFile, line: int, record: Mapping[str, Any]) -> list[dict[str, str]]:
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
        role = field(file, line, turn, role_key, may_be_blank=False)
        if role not in _ROLES:
            raise file.error(line, f"unknown role {role!r}: use {', '.join(_ROLES)}")
        if _ROLES[role] == "system" and messages:
            raise file.error(line, "a system message can only come first")
        content = field(file, line, turn, text_key, may_be_blank=False)
        messages.append({"role": _ROLES[role], "content": content})
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles[:1] != ["user"]:
        raise file.error(line, "a conversation should begin with the user")
    if "assistant" not in roles:
        raise file.error(line, "no turn of the assistant: there is nothing to learn")
    return messages


def field(
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


def e2e_pairs(file: SourceFile) -> Iterator[tuple[str, str]]:
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

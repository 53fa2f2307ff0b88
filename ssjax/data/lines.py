"""The records of a source file, checked and brought into the form of the task.

Whatever is wrong is one `UserError` that names file and line or row. Records are kept as they
are, but for the white space inside E2E references.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ssjax.data.columns import Columns
from ssjax.data.source_files import Place, Raw, SourceFile


def dialogsum_record(place: Place, record: Raw) -> dict[str, Any]:
    """Checks one of DialogSum; the many topics of a test record are cut to the first."""
    names = ["summary"]
    if "summary" not in record and "summary1" in record:
        names = [f"summary{i}" for i in range(1, len(record)) if f"summary{i}" in record]
    topic = "topic1" if "topic" not in record and "topic1" in record else "topic"
    return {
        "fname": field(place, record, "fname", may_be_blank=True),
        "dialogue": field(place, record, "dialogue", may_be_blank=False),
        "topic": field(place, record, topic, may_be_blank=True),
        "summaries": [field(place, record, name, may_be_blank=False) for name in names],
    }


def own_record(place: Place, line: Raw, columns: Columns) -> dict[str, Any] | None:
    """One of a user's own files, with the columns of its task; None: the task leaves it out."""
    record = line if columns.read is None else _as_read(place, line, columns.read)
    if record is None:
        return None
    texts: dict[str, Any] = {n: field(place, record, n, may_be_blank=True) for n in columns.names}
    texts[columns.answer] = _answers(place, record, columns.answer)
    return texts


def _as_read(place: Place, line: Raw, read: Callable) -> Raw | None:
    """What a user's function makes of a line."""
    try:
        record = read(line)
    except Exception as error:  # a function of the user may raise anything
        raise place.error(f"read of the task: {type(error).__name__}: {error}") from error
    if record is not None and not isinstance(record, Mapping):
        kind = type(record).__name__
        raise place.error(f"read of the task should return columns, found {kind}")
    return None if record is None else dict(record)


def _answers(place: Place, record: Raw, name: str) -> list[str]:
    """A text, or the texts of a list that is not empty."""
    value = record.get(name)
    each = [record | {name: text} for text in value] if isinstance(value, list | tuple) else []
    return [field(place, one, name, may_be_blank=False) for one in each or [record]]


# ShareGPT's names of the roles.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES |= {"system": "system"}


def conversation(place: Place, record: Raw) -> list[dict[str, str]]:
    """Checks one conversation, in either form, and brings it into messages."""
    form = "messages" if "messages" in record else "conversations"
    turns = record.get(form)
    if not isinstance(turns, list) or not turns:
        raise place.error('expected a list "messages" (or "conversations") of turns')
    role_key, text_key = ("role", "content") if form == "messages" else ("from", "value")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise place.error(f"a turn should be an object, found {type(turn).__name__}")
        role = field(place, turn, role_key, may_be_blank=False)
        if role not in _ROLES:
            raise place.error(f"unknown role {role!r}: use {', '.join(_ROLES)}")
        if _ROLES[role] == "system" and messages:
            raise place.error("a system message can only come first")
        content = field(place, turn, text_key, may_be_blank=False)
        messages.append({"role": _ROLES[role], "content": content})
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles[:1] != ["user"]:
        raise place.error("a conversation should begin with the user")
    if "assistant" not in roles:
        raise place.error("no turn of the assistant: there is nothing to learn")
    return messages


def field(place: Place, record: Raw, name: str, *, may_be_blank: bool) -> str:
    """Checks one text of a record."""
    if name not in record:
        raise place.error(f'field "{name}" is missing; the {place.unit} has {", ".join(record)}')
    value = record[name]
    if not isinstance(value, str):
        raise place.error(f'field "{name}" should be text, found {type(value).__name__}')
    if not (may_be_blank or value.strip()):
        raise place.error(f'field "{name}" is empty; fill it in or take the {place.unit} out')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise place.error(f'field "{name}" holds half of a surrogate pair') from error
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

    def here() -> Place:
        return Place(file.name, line)

    try:
        header = next(rows, [])
        if header != ["mr", "ref"]:
            raise here().error(f"expected the header mr,ref, found {','.join(header)!r}")
        line = rows.line_num + 1
        for row in rows:
            if row:
                yield _e2e_pair(here(), row)
                num_rows += 1
            line = rows.line_num + 1
    except csv.Error as error:
        raise here().error(f"not a row of comma-separated values: {error}") from error
    if not num_rows:
        raise here().error("no rows follow the header mr,ref")


def _e2e_pair(place: Place, row: list[str]) -> tuple[str, str]:
    """Checks one row."""
    if len(row) != 2:
        raise place.error(f"expected 2 columns (mr, ref), found {len(row)}")
    for name, value in zip(("mr", "ref"), row, strict=True):
        if not value.strip():
            raise place.error(f'column "{name}" is empty; fill it in or take the row out')
    return row[0], " ".join(row[1].split())

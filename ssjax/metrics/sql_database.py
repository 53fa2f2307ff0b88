"""A database in memory on which a query can do nothing but read, for a while.

The tables are those of a record's CREATE TABLE statements. A query may not write, attach files
or set anything (an authorizer sees every statement before it runs), may not call functions that
reach out or make values of any size, may not take more than a fixed number of SQLite's
instructions, and may not return more than a fixed number of rows.
"""

import collections
import dataclasses
import math
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping

# A query over a few dozen rows takes thousands of instructions; this many take 0.1 to 0.3 s. The
# count is the same on every machine. The seconds, of this thread alone, are for instructions that
# are slow themselves: one that searches a text of the size below takes milliseconds.
_MAX_INSTRUCTIONS = 5_000_000
_MAX_SECONDS = 3.0
_INSTRUCTIONS_PER_LOOK = 1_000
_MAX_ROWS = 10_000
_MAX_BYTES = 10_000  # of a text or a row that a query makes
_MAX_CONTEXT_BYTES = 1_000_000  # of the statements that make the tables
# SQLite writes out a table of WITH at each place that names it before any limit is looked at;
# this many take 0.2 s.
_MAX_WRITTEN_OUT = 20_000
_REACHING_OUT = ("load_extension", "fts3_tokenizer", "sqlite_log", "readfile", "writefile", "edit")
_FILLING_UP = ("printf", "format")  # to any width, before the size is looked at
_TAME_FORMAT = re.compile(r"'(?:[^'%]|%[-+ 0#,!]*[0-9]{0,3}(?:\.[0-9]{0,3})?l{0,2}[A-Za-z%])*'")
_TOKEN = re.compile(
    r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/|\w+|[^\w\s]", re.DOTALL
)

_READS = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)
_CREATES = _READS | {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,  # of a primary key
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_TRANSACTION,
}

_TOO_MUCH = (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL)

# What became of a query.
RAN = "ran"
MALFORMED = "malformed"  # SQLite rejects it: syntax, unknown names, not exactly one query
DENIED = "denied"  # it would do more than read
STOPPED = "stopped"  # it ran too long or made too much


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: str  # integer, real, date or text; how SQLite stores and compares its values


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a query."""

    fate: str  # RAN, MALFORMED, DENIED or STOPPED
    rows: tuple[tuple, ...] = ()  # in the order of the database


class Database:
    """Tables in memory. To be closed, best by `contextlib.closing`."""

    def __init__(self, context: str):
        """Makes empty tables.

        Args:
          context: CREATE TABLE statements.

        Raises:
          ValueError: SQLite rejects them, or they do something else.
        """
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.text_factory = lambda data: data.decode(errors="surrogateescape")
        try:
            with _Guard(self._connection, _CREATES, _MAX_CONTEXT_BYTES, _REACHING_OUT):
                self._connection.executescript(context)
            self.tables = self._read_tables()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            self.close()
            raise ValueError(f"cannot create the tables: {error}") from error

    def close(self) -> None:
        self._connection.close()

    def fill(self, rows: Mapping[str, Iterable[tuple]]) -> None:
        """Inserts rows, by table; one that breaks a constraint of its table is left out."""
        for table, values in rows.items():
            names = ", ".join(_quoted(column.name) for column in self.tables[table])
            marks = ", ".join("?" * len(self.tables[table]))
            self._connection.executemany(
                f"INSERT OR IGNORE INTO {_quoted(table)} ({names}) VALUES ({marks})", values
            )

    def query(self, sql: str) -> Outcome:
        """Runs one query, read-only and within limits."""
        tokens = _tokens(sql)
        if _written_out(tokens) > _MAX_WRITTEN_OUT:
            return Outcome(STOPPED)
        refused = _REACHING_OUT if _is_tame(tokens) else _REACHING_OUT + _FILLING_UP
        guard = _Guard(self._connection, _READS, _MAX_BYTES, refused)
        try:
            with guard:
                cursor = self._connection.execute(sql)
                rows = cursor.fetchmany(_MAX_ROWS + 1)
                is_query = cursor.description is not None  # else empty, or a comment
                cursor.close()
        except sqlite3.Error as error:
            if guard.stopped or getattr(error, "sqlite_errorcode", None) in _TOO_MUCH:
                return Outcome(STOPPED)
            return Outcome(DENIED if guard.denied else MALFORMED)
        except MemoryError:
            return Outcome(STOPPED)
        except (sqlite3.Warning, ValueError):  # several statements; text with NUL
            return Outcome(MALFORMED)
        if len(rows) > _MAX_ROWS:
            return Outcome(STOPPED)
        return Outcome(RAN, tuple(rows)) if is_query else Outcome(MALFORMED)

    def _read_tables(self) -> dict[str, tuple[Column, ...]]:
        """Columns by table, in the order of the context."""
        names = self._connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' "
            "ESCAPE '~'"
        ).fetchall()
        return {
            name: tuple(
                Column(column, _kind(declared))
                for _, column, declared, *_ in self._connection.execute(
                    f"PRAGMA table_info({_quoted(name)})"
                )
            )
            for (name,) in names
        }


class _Guard:
    """While it is entered, a connection does nothing but what is allowed, and not for long."""

    def __init__(self, connection: sqlite3.Connection, allowed, max_bytes: int, refused):
        self._connection = connection
        self._allowed = allowed
        self._refused = refused  # functions
        self._limits = {
            sqlite3.SQLITE_LIMIT_LENGTH: max_bytes,
            sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
        }
        self.denied = False
        self.stopped = False

    def __enter__(self):
        self._looks = 0
        self._deadline = time.thread_time() + _MAX_SECONDS
        self._before = {
            kind: self._connection.setlimit(kind, n) for kind, n in self._limits.items()
        }
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(self._look, _INSTRUCTIONS_PER_LOOK)
        return self

    def __exit__(self, *_):
        self._connection.set_progress_handler(None, 0)
        self._connection.set_authorizer(None)
        for kind, number in self._before.items():
            self._connection.setlimit(kind, number)

    def _authorize(self, action, _, name, *__):
        refused = action == sqlite3.SQLITE_FUNCTION and name.lower() in self._refused
        if action in self._allowed and not refused:
            return sqlite3.SQLITE_OK
        self.denied = True
        return sqlite3.SQLITE_DENY

    def _look(self):
        self._looks += 1
        self.stopped = (
            self._looks * _INSTRUCTIONS_PER_LOOK >= _MAX_INSTRUCTIONS
            or time.thread_time() > self._deadline
        )
        return self.stopped


def _tokens(sql: str) -> list[str]:
    """Names in lower case and without quotes, texts with them; no comments."""
    found = (token for token in _TOKEN.findall(sql) if token[:2] not in ("--", "/*"))
    return [t if t[0] == "'" else t.strip('"`[]').lower() or t for t in found]


def _is_tame(tokens: list[str]) -> bool:
    """Whether printf and format, where they are called, say themselves how wide they fill up."""
    calls = zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False)
    return all(
        _TAME_FORMAT.fullmatch(text) and after in (",", ")")
        for name, bracket, text, after in calls
        if name in _FILLING_UP and bracket == "("
    )


def _written_out(tokens: list[str]) -> int:
    """At most how often SQLite writes out one table of WITH, by the names that tables have."""
    named: collections.Counter[str] = collections.Counter()
    for place in range(1, len(tokens) - 1):
        if tokens[place] != "as" or tokens[place + 1] not in ("(", "not", "materialized"):
            continue
        name = place - 1
        if tokens[name] == ")":  # after the names of its columns
            while name > 0 and tokens[name] != "(":
                name -= 1
            name -= 1
        named[tokens[name]] += 1
    rest = [*tokens[1:], ""]
    used = collections.Counter(t for t, after in zip(tokens, rest, strict=False) if after != ".")
    return math.prod(max(1, used[name] - count) for name, count in named.items())


def _kind(declared: str) -> str:
    """By SQLite's rules of affinity, dates apart: https://sqlite.org/datatype3.html."""
    declared = declared.upper()
    if "INT" in declared or "BOOL" in declared:
        return "integer"
    if any(part in declared for part in ("CHAR", "CLOB", "TEXT")):
        return "text"
    if any(part in declared for part in ("DATE", "TIME", "YEAR")):
        return "date"
    if any(part in declared for part in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return "real"
    return "text"


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'

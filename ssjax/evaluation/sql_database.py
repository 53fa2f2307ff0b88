"""A database in memory on which a query can do nothing but read, for a while.

The tables are those of a record's CREATE TABLE statements. A query may not write, attach files
or set anything (an authorizer sees every statement before it runs), may not take more than a
fixed number of SQLite's instructions, and may not return more than a fixed number of rows.
"""

import dataclasses
import sqlite3
import time
from collections.abc import Iterable, Mapping

# A query over a few dozen rows takes thousands of instructions; this many take 0.1 to 0.3 s. The
# count is the same on every machine. The seconds are for instructions that are slow themselves.
_MAX_INSTRUCTIONS = 5_000_000
_MAX_SECONDS = 5.0
_INSTRUCTIONS_PER_LOOK = 10_000
_MAX_ROWS = 10_000
_MAX_BYTES = 100_000  # of a text or a row that a query makes

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
            with self._guarded(_CREATES):
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
        guard = self._guarded(_READS)
        try:
            with guard:
                cursor = self._connection.execute(sql)
                rows = cursor.fetchmany(_MAX_ROWS + 1)
                is_query = cursor.description is not None  # else empty, or a comment
                cursor.close()
        except sqlite3.Error as error:
            too_big = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_TOOBIG
            if guard.stopped or too_big:
                return Outcome(STOPPED)
            return Outcome(DENIED if guard.denied else MALFORMED)
        except (sqlite3.Warning, ValueError, MemoryError):  # several statements; text with NUL
            return Outcome(MALFORMED)
        if len(rows) > _MAX_ROWS:
            return Outcome(STOPPED)
        return Outcome(RAN, tuple(rows)) if is_query else Outcome(MALFORMED)

    def _guarded(self, allowed) -> "_Guard":
        return _Guard(self._connection, allowed)

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

    def __init__(self, connection: sqlite3.Connection, allowed):
        self._connection = connection
        self._allowed = allowed
        self.denied = False
        self.stopped = False

    def __enter__(self):
        self._looks = 0
        self._deadline = time.monotonic() + _MAX_SECONDS
        self._length = self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_BYTES)
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(self._look, _INSTRUCTIONS_PER_LOOK)
        return self

    def __exit__(self, *_):
        self._connection.set_progress_handler(None, 0)
        self._connection.set_authorizer(None)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._length)

    def _authorize(self, action, *_):
        if action in self._allowed:
            return sqlite3.SQLITE_OK
        self.denied = True
        return sqlite3.SQLITE_DENY

    def _look(self):
        self._looks += 1
        self.stopped = (
            self._looks * _INSTRUCTIONS_PER_LOOK >= _MAX_INSTRUCTIONS
            or time.monotonic() > self._deadline
        )
        return self.stopped


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

"""What a query may and may not do, tried against SQLite itself."""

import contextlib
import time

import pytest

from ssjax.metrics import sql_database
from ssjax.metrics.sql_database import DENIED, MALFORMED, RAN, STOPPED, Column, Database

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "

LONG = "replace(hex(zeroblob(2400)), '0', 'a')"  # 4,800 characters


def nested(body, columns=""):
    """Tables of WITH, each of which names the one before it twice: 2**39 when written out."""
    tables = ", ".join(f"w{i + 1}{columns} AS ({body.format(f'w{i}')})" for i in range(39))
    return f"WITH w0 AS (SELECT 1 AS i), {tables} SELECT COUNT(*) FROM w39"


@pytest.fixture
def database():
    with contextlib.closing(Database("CREATE TABLE t (a VARCHAR, n INTEGER)")) as database:
        database.fill({"t": [("x", 1), ("y", 2), (None, 3)]})
        yield database


def test_tables_and_types():
    context = (
        'CREATE TABLE "a b" (c VARCHAR(20), d INTEGER, e REAL, f DATE, g DECIMAL(4,2), h); '
        "CREATE TABLE u (x int)"
    )
    with contextlib.closing(Database(context)) as database:
        kinds = [column.kind for column in database.tables["a b"]]
        assert kinds == ["text", "integer", "real", "date", "real", "text"]
        assert database.tables["u"] == (Column("x", "integer"),)


def test_queries_run(database):
    outcome = database.query("SELECT n, a FROM t WHERE n > 1 ORDER BY n DESC;")
    assert outcome.fate == RAN and outcome.rows == ((3, None), (2, "y"))
    assert database.query("SELECT a FROM t WHERE n > 5").rows == ()


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM t",
        "UPDATE t SET n = 0",
        "INSERT INTO t VALUES ('z', 4)",
        "DROP TABLE t",
        "CREATE TABLE u (a)",
        "WITH x AS (SELECT 1) DELETE FROM t",
        "BEGIN",
        "SAVEPOINT s",
        "INSERT INTO t VALUES ('z', 4) RETURNING n",
        "PRAGMA query_only = OFF",
        "PRAGMA table_info(t)",
        "SELECT * FROM pragma_table_info('t')",
        "SELECT load_extension('x')",
        "SELECT fts3_tokenizer('simple')",
        # These fill up to any width, one character after the other, before they look at the size.
        "SELECT printf('%.*c', 1000000000, 'x')",
        "SELECT PRINTF('%1000000000d', 1)",
        "SELECT format('%s' || '%999999999d', 1)",
        "SELECT printf(a, n) FROM t",
        "SELECT printf('%.2f', n), \"printf\" ('%*d', 9, n) FROM t",
    ],
)
def test_nothing_but_reading_is_allowed(database, sql):
    assert database.query(sql).fate == DENIED
    assert database.query("SELECT COUNT(*), SUM(n) FROM t").rows == ((3, 6),)


def test_files_are_out_of_reach(database, tmp_path):
    path = tmp_path / "file.db"
    for sql in (f"ATTACH '{path}' AS f", f"VACUUM INTO '{path}'"):
        assert database.query(sql).fate == DENIED
        with pytest.raises(ValueError, match="cannot create the tables: .*authoriz"):
            Database(f"CREATE TABLE t (a); {sql}")
    assert not path.exists()


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "-- nothing",
        "The cat sat.",
        "SELECT a FROM",
        "SELECT b FROM t",
        "SELECT a FROM u",
        "SELECT a FROM t; SELECT n FROM t",
        "SELECT a FROM t; DROP TABLE t",
        "SELECT a\0 FROM t",
        "SELECT '\ud800'",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    ],
)
def test_malformed(database, sql):
    assert database.query(sql).fate == MALFORMED
    assert database.query("SELECT COUNT(*) FROM t").rows == ((3,),)


@pytest.mark.parametrize(
    "sql",
    [
        f"{NUMBERS} COUNT(*) FROM n",  # no row ever comes back
        f"{NUMBERS} i FROM n",  # rows without end
        "SELECT zeroblob(1000000000)",
        "SELECT length(randomblob(1000000000))",
        f"SELECT replace({LONG}, 'a', {LONG})",
        f"SELECT {' || '.join([LONG] * 9)}",
        f"{NUMBERS} group_concat(i) FROM n",
        f"SELECT json_group_array({LONG}) FROM t, t, t",
        nested("SELECT l.i FROM {0} l, {0} r"),
        nested("SELECT * FROM {0} UNION ALL SELECT * FROM {0}"),
        nested("SELECT * FROM {0}, {0} AS r", columns=" (i)"),
        "WITH RECURSIVE w(x) AS (SELECT 'ab' UNION ALL SELECT x || x FROM w) SELECT x FROM w",
    ],
)
def test_what_never_ends_is_stopped(database, sql):
    start = time.monotonic()
    assert database.query(sql).fate == STOPPED
    assert time.monotonic() - start < 10
    assert database.query("SELECT COUNT(*) FROM t").rows == ((3,),)  # limits are per query


@pytest.mark.parametrize(
    "sql, rows",
    [
        ("SELECT printf('%.1f|%3d|%s%%', 1.25, n, a) FROM t WHERE n = 1", [("1.3|  1|x%",)]),
        (
            "WITH w AS (SELECT n FROM t), v (m) AS (SELECT MAX(n) FROM w) "
            "SELECT w.n, w.n + v.m FROM w JOIN v ON w.n < v.m, w AS x WHERE x.n = 1",
            [(1, 4), (2, 5)],
        ),
        (f"SELECT length({LONG}), a LIKE '%{'x' * 900}' FROM t WHERE n = 1", [(4800, 0)]),
        ("SELECT group_concat(a, ', ') FROM t", [("x, y",)]),
    ],
)
def test_what_fills_up_little_runs(database, sql, rows):
    assert database.query(sql).fate == RAN
    assert list(database.query(sql).rows) == rows


def test_a_context_may_be_longer_than_what_a_query_makes():
    columns = ", ".join(f"a_rather_long_name_{i} VARCHAR" for i in range(999))
    with contextlib.closing(Database(f"CREATE TABLE t ({columns})")) as database:
        assert len(database.tables["t"]) == 999


def test_a_query_within_the_limit_of_rows_is_not_stopped(database):
    limit = sql_database._MAX_ROWS
    assert len(database.query(f"{NUMBERS} i FROM n LIMIT {limit}").rows) == limit
    assert database.query(f"{NUMBERS} i FROM n LIMIT {limit + 1}").fate == STOPPED


def test_text_that_is_not_utf8_is_a_value(database):
    assert database.query("SELECT CAST(x'ff' AS TEXT)").fate == RAN


def test_tables_that_cannot_be(database):
    for context in ("CREATE TABLE", "CREATE TABLE t (a); CREATE TABLE t (b)", "hello"):
        with pytest.raises(ValueError, match="cannot create the tables"):
            Database(context)

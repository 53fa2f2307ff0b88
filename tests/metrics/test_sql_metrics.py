"""Exact and execution match by cases whose answers a reader can see, and on published records."""

import json
import os
from pathlib import Path

import pytest

from ssjax.metrics.sql_database import DENIED, MALFORMED, RAN, STOPPED
from ssjax.metrics.sql_metrics import judge, normalise, reference_settled, with_strings

ROOT = Path(__file__).parents[2]
ONE = "CREATE TABLE game (venue VARCHAR, score INTEGER, year VARCHAR)"
TWO = (
    "CREATE TABLE singer (singer_id INTEGER, name VARCHAR, age INTEGER); "
    "CREATE TABLE song (song_id INTEGER, singer_id INTEGER, title VARCHAR)"
)
JOINED = (
    "SELECT song.title FROM singer JOIN song ON singer.singer_id = song.singer_id "
    "WHERE singer.name = 'Ann' AND singer.age > 30"
)


@pytest.mark.parametrize(
    ("output", "same"),
    [
        ("select  VENUE\nfrom Game where Year = 'x'  and score<>3 ;", True),
        ('SELECT "venue" FROM `game` WHERE year = "x" AND score != 3 -- the venue', True),
        ("SELECT venue FROM game WHERE year = 'X' AND score <> 3", False),  # the literal's case
        ("SELECT venue FROM game WHERE score <> 3 AND year = 'x'", False),
        ("SELECT venue FROM game WHERE year = 'x' AND score <> 4", False),
        ("SELECT venue FROM game WHERE year = x AND score <> 3", False),  # a name, not a string
        ("", False),
    ],
)
def test_exact_match(output, same):
    reference = "SELECT venue FROM game WHERE year = 'x' AND score <> 3"
    assert judge(output, ONE, reference).exact is same


def test_normal_form_of_what_is_no_query():
    assert normalise("The  cat\n sat on.", ()) == "The cat sat on."
    assert normalise("SELECT 1; SELECT 2", ()) == "SELECT 1; SELECT 2"


def test_double_quotes_hold_strings():
    names = {"game", "venue", "year"}
    for sql, expected in (
        ('SELECT venue FROM game WHERE year = "x"', "SELECT venue FROM game WHERE year = 'x'"),
        ('SELECT "venue" FROM "game"', 'SELECT "venue" FROM "game"'),
        (
            'SELECT venue AS "v" FROM game AS t WHERE t."year" > "a"',
            'SELECT venue AS "v" FROM game AS t WHERE t."year" > \'a\'',
        ),
        (
            'SELECT 1 FROM game WHERE year IN ("a", "it\'s ""b""")',
            "SELECT 1 FROM game WHERE year IN ('a', 'it''s \"b\"')",
        ),
        # SQLite would compare the column with itself.
        ('SELECT 1 FROM game WHERE venue = "Venue"', "SELECT 1 FROM game WHERE venue = 'Venue'"),
        ("SELECT 'broken", "SELECT 'broken"),
    ):
        assert with_strings(sql, names) == expected


@pytest.mark.parametrize(
    ("output", "matches"),
    [
        ("SELECT venue FROM game WHERE year = '1999' AND score > 10", True),
        ("SELECT g.venue AS v FROM game AS g WHERE g.score >= 11 AND year LIKE '1999'", True),
        ("SELECT venue FROM (SELECT * FROM game WHERE 10 < score) WHERE year = '1999'", True),
        ("SELECT venue FROM game WHERE year = '1999'", False),
        ("SELECT venue FROM game WHERE score > 10", False),
        ("SELECT venue FROM game WHERE year = '1999' AND score >= 10", False),
        ("SELECT venue FROM game WHERE year = '1999' OR score > 10", False),
        ("SELECT DISTINCT venue FROM game WHERE year = '1999' AND score > 10", False),
        ("SELECT year FROM game WHERE year = '1999' AND score > 10", False),
        ("SELECT venue, score FROM game WHERE year = '1999' AND score > 10", False),
        ("SELECT venue FROM game WHERE year = '1999' AND score > 10 LIMIT 1", False),
        ("SELECT venue FROM game WHERE 0", False),
    ],
)
def test_execution_match(output, matches):
    reference = "SELECT venue FROM game WHERE year = '1999' AND score > 10"
    judgement = judge(output, ONE, reference)
    assert judgement.execution is matches
    assert judgement.fate == RAN and judgement.reference_ran


@pytest.mark.parametrize(
    ("output", "matches"),
    [
        (
            "SELECT t2.title FROM song AS t2, singer AS t1 WHERE t1.name = 'Ann' AND t1.age > 30 "
            "AND t1.singer_id = t2.singer_id",
            True,
        ),
        (JOINED.replace("= song.singer_id", "= song.song_id"), False),
        (JOINED.replace(" AND singer.age > 30", ""), False),
        (JOINED.replace("singer.name", "song.title"), False),
    ],
)
def test_execution_match_of_joins(output, matches):
    judgement = judge(output, TWO, JOINED)
    assert (judgement.fate, judgement.execution) == (RAN, matches)


@pytest.mark.parametrize(
    ("reference", "output", "matches"),
    [
        ("SELECT venue, year FROM game ORDER BY score", "SELECT venue, year FROM game", False),
        (
            "SELECT venue, year FROM game ORDER BY score",
            "SELECT venue, year FROM game ORDER BY score DESC",
            False,
        ),
        (
            "SELECT venue, year FROM game ORDER BY score",
            "SELECT venue, year FROM game ORDER BY score ASC",
            True,
        ),
        ("SELECT venue, year FROM game", "SELECT venue, year FROM game ORDER BY score", True),
        (
            "SELECT venue FROM game ORDER BY score DESC LIMIT 1",
            "SELECT venue FROM game WHERE score = (SELECT MAX(score) FROM game)",
            True,
        ),
        (
            "SELECT venue FROM game ORDER BY score DESC LIMIT 1",
            "SELECT venue FROM game ORDER BY score LIMIT 1",
            False,
        ),
        # ORDER BY inside does not order the result.
        (
            "SELECT venue FROM game WHERE score IN (SELECT score FROM game ORDER BY year)",
            "SELECT venue FROM game ORDER BY venue DESC",
            True,
        ),
    ],
)
def test_order_matters_where_the_reference_asks_for_it(reference, output, matches):
    assert judge(output, ONE, reference).execution is matches


@pytest.mark.parametrize(
    ("reference", "output"),
    [
        ("SELECT COUNT(venue) FROM game", "SELECT COUNT(score) FROM game"),
        ("SELECT MAX(score) FROM game WHERE year = 1999", "SELECT MIN(score) FROM game"),
        ("SELECT AVG(score) FROM game", "SELECT SUM(score) FROM game"),
        ("SELECT venue FROM game GROUP BY venue HAVING COUNT(*) >= 2", "SELECT venue FROM game"),
        (
            "SELECT year FROM game WHERE venue = 'a' INTERSECT SELECT year FROM game WHERE "
            "venue = 'b'",
            "SELECT year FROM game WHERE venue = 'a'",
        ),
        ("SELECT venue FROM game WHERE venue LIKE '%ab_c%'", "SELECT venue FROM game"),
        (
            "SELECT venue FROM game WHERE score BETWEEN 5 AND 9",
            "SELECT venue FROM game WHERE score BETWEEN 5 AND 8",
        ),
    ],
)
def test_different_queries_are_told_apart(reference, output):
    assert judge(reference, ONE, reference).execution
    assert not judge(output, ONE, reference).execution


@pytest.mark.parametrize(
    ("output", "fate"),
    [
        ("SELECT venue FROM", MALFORMED),
        ("SELECT name FROM game", MALFORMED),
        ("SELECT venue FROM game; SELECT venue FROM game", MALFORMED),
        ("", MALFORMED),
        ("DROP TABLE game", DENIED),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT COUNT(*) FROM n",
            STOPPED,
        ),
    ],
)
def test_misses_are_told_apart(output, fate):
    judgement = judge(output, ONE, "SELECT venue FROM game")
    assert (judgement.exact, judgement.execution, judgement.fate) == (False, False, fate)


def test_databases_hold_what_the_reference_looks_for():
    """By the results themselves, and the same in every process."""
    settled = reference_settled(TWO, JOINED)
    assert len(settled) == 5
    for rows, outcome in settled:
        assert outcome.rows
        ids = {row[0] for row in rows["singer"] if row[1] == "Ann" and (row[2] or 0) > 30}
        titles = sorted(
            (title for i in ids for _, key, title in rows["song"] if key == i and i is not None),
            key=str,
        )
        found = sorted((title for (title,) in outcome.rows), key=str)
        assert set(found) == set(titles)
        for row in rows["singer"]:
            assert isinstance(row[0], int | None) and isinstance(row[1], str | None)
    reference_settled.cache_clear()
    assert reference_settled(TWO, JOINED) == settled


def test_a_reference_that_cannot_run_is_matched_as_text():
    for context, reference in (
        (ONE, "SELECT name FROM game"),
        ("CREATE TABEL game (venue)", "SELECT venue FROM game"),
    ):
        right = judge(reference.lower(), context, reference)
        assert right.exact and right.execution and not right.reference_ran
        wrong = judge("SELECT 1", context, reference)
        assert not wrong.execution and not wrong.reference_ran


def published(split, count):
    data = Path(os.environ.get("SSJAX_DATA", ROOT.parent / "shared" / "data")) / "sql_context"
    if not data.is_dir():
        pytest.skip("no sql_context files: set SSJAX_DATA to a directory that holds them")
    lines = (data / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:: len(lines) // count][:count]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_published_references_match_themselves_and_little_else(split):
    """Respelt, a reference runs and matches; with another reference's literals it does not."""
    from sqlglot import exp, parse_one

    told_apart = changed = 0
    for record in published(split, 60):
        context, answer = record["context"], record["answer"]
        assert judge(answer, context, answer).exact
        # Another text, so that both are run: nothing is settled by comparing texts.
        wrapped = f"SELECT * FROM ({answer})"
        judgement = judge(wrapped, context, answer)
        assert judgement.execution and not judgement.exact and judgement.reference_ran, answer
        where = parse_one(with_strings(answer, ()), read="sqlite")
        if clause := where.find(exp.Where):
            clause.pop()
            changed += 1
            told_apart += not judge(where.sql("sqlite"), context, answer).execution
    assert changed > 30
    assert told_apart >= 0.9 * changed


@pytest.mark.parametrize("text", ["١٢", "1_000", "१", "nan", "Infinity"])
def test_what_only_python_takes_for_a_number_stays_text(text):
    """SQLite stores it as it is, even in a column of integers."""
    settled = reference_settled(ONE, f"SELECT venue FROM game WHERE score = '{text}'")
    values = {row[1] for rows, _ in settled for row in rows["game"]}
    assert text in values

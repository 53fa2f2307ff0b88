"""SQL against a reference: equal text, and equal results on generated databases.

Exact match compares what sqlglot writes of both queries: keywords and names in lower case or as
sqlglot spells them, one kind of quotes, no extra white space, comments or semicolon. Literals are
compared letter by letter, and so is the order of conditions and columns.

Execution match runs both in SQLite on several databases that are filled for the record (see
sql_rows.py): the rows must be the same, in the same order only if the reference ends in ORDER BY.
Columns are compared by place, their names are not. Databases on which the reference finds nothing,
or depends on the order in which rows were inserted, are passed over where there are better ones.

In this data "x" in double quotes is a string. SQLite itself takes it for a name if there is such a
column, so it is made a string where it is compared with something, and elsewhere if the tables
have no such name.
"""

import collections
import contextlib
import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssjax.metrics.sql_database import MALFORMED, RAN, Database, Outcome
from ssjax.metrics.sql_rows import Hints, make_rows, read_hints

if TYPE_CHECKING:
    from sqlglot import exp

_NUM_DATABASES = 5  # that a query is judged on
_NUM_TRIED = 20  # fillings that are tried to find as many
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What one output is worth."""

    exact: bool
    execution: bool
    fate: str  # of the output, see `Outcome`; RAN where it equals the reference
    reference_ran: bool  # else execution match is exact match


def judge_all(
    outputs: Sequence[str], contexts: Sequence[str], references: Sequence[str]
) -> list[Judgement]:
    """Judges outputs, each against one reference over the tables of its context."""
    triples = zip(outputs, contexts, references, strict=True)
    return [judge(output, context, reference) for output, context, reference in triples]


# Ways of decoding mostly have the same outputs, which are then judged once.
@functools.lru_cache(maxsize=2**16)
def judge(output: str, context: str, reference: str) -> Judgement:
    """Judges one output.

    Args:
      output: what should be one SQL query; anything may be in it.
      context: CREATE TABLE statements.
      reference: the right query.
    """
    with contextlib.ExitStack() as stack:
        try:
            empty = stack.enter_context(contextlib.closing(Database(context)))
        except ValueError:  # no such tables: all that is left is the text
            exact = normalise(output, ()) == normalise(reference, ())
            return Judgement(exact, exact, RAN if exact else MALFORMED, reference_ran=False)
        names = _names(empty)
        exact = output == reference or normalise(output, names) == normalise(reference, names)
        settled = reference_settled(context, reference)
        if exact or not settled:
            fate = RAN if exact else empty.query(with_strings(output, names)).fate
            return Judgement(exact, exact, fate, reference_ran=bool(settled))
    query, is_ordered = with_strings(output, names), _is_ordered(_parse(reference, names))
    for rows, expected in settled:
        with contextlib.closing(Database(context)) as database:
            database.fill(rows)
            outcome = database.query(query)
        if outcome.fate != RAN or not same_rows(expected, outcome, is_ordered=is_ordered):
            return Judgement(exact, False, outcome.fate, reference_ran=True)
    return Judgement(exact, True, RAN, reference_ran=True)


@functools.lru_cache(maxsize=1024)
def reference_settled(context: str, reference: str) -> list[tuple[dict, Outcome]]:
    """Rows that a reference is judged on, by table, and what it finds in them; [] if it fails.

    Args:
      context: CREATE TABLE statements that SQLite accepts.
      reference: the right query.
    """
    with contextlib.closing(Database(context)) as empty:
        names, tables = _names(empty), empty.tables
    parsed = _parse(reference, names)
    hints = Hints((), ()) if parsed is None else read_hints(parsed)
    query, is_ordered = with_strings(reference, names), _is_ordered(parsed)
    found: dict[str, list[tuple[dict, Outcome]]] = {"good": [], "stable": [], "unstable": []}
    for number in range(_NUM_TRIED):
        seed = f"{_SEED}\n{number}\n{context}\n{reference}"
        rng = random.Random(seed.encode(errors="surrogatepass"))
        rows = make_rows(tables, hints, rng, wide=number % 2 == 1)
        backwards = {table: values[::-1] for table, values in rows.items()}
        outcomes = []
        for order in (rows, backwards):
            with contextlib.closing(Database(context)) as database:
                database.fill(order)
                outcomes.append(database.query(query))
        outcome = outcomes[0]
        if outcome.fate != RAN:
            continue
        if not same_rows(*outcomes, is_ordered=is_ordered):
            found["unstable"].append((rows, outcome))
        else:
            found["stable" if _is_trivial(outcome) else "good"].append((rows, outcome))
        if len(found["good"]) == _NUM_DATABASES:
            break
    return next((kind[:_NUM_DATABASES] for kind in found.values() if kind), [])


def normalise(sql: str, names: Sequence[str]) -> str:
    """One spelling of a query; of what sqlglot cannot read, the text with single spaces.

    Args:
      sql: any text.
      names: of the tables and columns, in lower case.
    """
    from sqlglot import exp

    parsed = _parse(sql, names)
    if parsed is None:
        return " ".join(sql.split())
    for identifier in parsed.find_all(exp.Identifier):
        identifier.set("this", identifier.name.lower())
        identifier.set("quoted", False)
    return parsed.sql(dialect="sqlite", comments=False)


def with_strings(sql: str, names: Sequence[str]) -> str:
    """The query with strings in single quotes, see the top of this file.

    Args:
      sql: any text; as it is if it cannot be cut into tokens.
      names: of the tables and columns, in lower case.
    """
    import sqlglot
    from sqlglot.tokens import TokenType

    compared = {
        TokenType.EQ,
        TokenType.NEQ,
        TokenType.LT,
        TokenType.LTE,
        TokenType.GT,
        TokenType.GTE,
        TokenType.LIKE,
        TokenType.BETWEEN,
    }
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
    except sqlglot.errors.SqlglotError:
        return sql
    pieces, end = [], 0
    kinds = [None, *(token.token_type for token in tokens), None]
    for before, token, after in zip(kinds, tokens, kinds[2:], strict=False):
        if token.token_type is not TokenType.IDENTIFIER or sql[token.start] != '"':
            continue
        qualified = TokenType.DOT in (before, after) or before is TokenType.ALIAS
        if qualified or (before not in compared and token.text.lower() in names):
            continue
        text = token.text.replace("'", "''")
        pieces.append(f"{sql[end : token.start]}'{text}'")
        end = token.end + 1
    return "".join(pieces) + sql[end:]


def same_rows(expected: Outcome, found: Outcome, *, is_ordered: bool) -> bool:
    """Whether two results hold the same rows, each as often; numbers to nine digits."""
    if len(expected.rows) != len(found.rows):
        return False
    pair = [[tuple(map(_rounded, row)) for row in result.rows] for result in (expected, found)]
    return (
        pair[0] == pair[1]
        if is_ordered
        else collections.Counter(pair[0]) == (collections.Counter(pair[1]))
    )


def _parse(sql: str, names: Sequence[str]) -> "exp.Expression | None":
    """The tree of exactly one query; None: sqlglot reads something else."""
    import sqlglot
    from sqlglot import exp

    try:
        statements = sqlglot.parse(with_strings(sql, names), read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        return None
    return statements[0]


def _is_ordered(query: "exp.Expression | None") -> bool:
    return query is not None and query.args.get("order") is not None


def _names(database: Database) -> frozenset[str]:
    columns = [column.name for table in database.tables.values() for column in table]
    return frozenset(name.lower() for name in [*database.tables, *columns])


def _is_trivial(outcome: Outcome) -> bool:
    """Nothing found, or nothing but zeros: many wrong queries find that too."""
    return all(value in (None, 0) for row in outcome.rows for value in row)


def _rounded(value):
    return float(f"{value:.9g}") if isinstance(value, float) else value

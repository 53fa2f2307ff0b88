"""Rows for a record's tables, made so that its reference query has something to find.

Values are drawn from few, so that joins, groups and set operations meet. A third of the rows of a
table satisfies every comparison of the reference with a literal, a third all but one, which tells
a query without that condition apart. Everything follows from the generator that is given.
"""

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ssjax.metrics.sql_database import Column

if TYPE_CHECKING:
    from sqlglot import exp

_NUM_ROWS = 36
_NUM_KEYS = 8  # values of columns that are joined
_NUMBER = re.compile(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", re.ASCII)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class Condition:
    """A comparison of a column with literals in a query."""

    column: str  # lower case, without its table: what holds for one table does for another
    operator: str  # = <> < <= > >= like
    value: str


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a query says about the values that it looks for."""

    conditions: tuple[Condition, ...]
    joined: tuple[frozenset[str], ...]  # groups of columns that are compared with each other


def read_hints(query: "exp.Expression") -> Hints:
    """The literals and joins of a query."""
    from sqlglot import exp

    operators = {
        exp.EQ: "=",
        exp.NEQ: "<>",
        exp.LT: "<",
        exp.LTE: "<=",
        exp.GT: ">",
        exp.GTE: ">=",
        exp.Like: "like",
    }
    mirrored = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
    conditions, groups = [], []
    for node in query.find_all(*operators, exp.Between, exp.In):
        column = node.this
        if isinstance(node, exp.Between):
            pairs = [(">=", node.args["low"]), ("<=", node.args["high"])]
        elif isinstance(node, exp.In):
            pairs = [("=", value) for value in node.expressions]
            inner = node.args.get("query")
            selected = inner.find(exp.Select) if inner else None
            if selected and selected.expressions:
                pairs = [("=", selected.expressions[0].unalias())]
        else:
            operator, value = operators[type(node)], node.expression
            if isinstance(value, exp.Subquery) and isinstance(value.this, exp.Select):
                value = value.this.expressions[0].unalias()
            if isinstance(value, exp.Column) and _literal(column) is not None:
                column, value = value, column
                operator = mirrored.get(operator, operator)
            pairs = [(operator, value)]
        if isinstance(column, exp.Avg | exp.Max | exp.Min | exp.Sum):  # of HAVING
            column = column.this
        if not isinstance(column, exp.Column):
            continue
        name = column.name.lower()
        for operator, value in pairs:
            if isinstance(value, exp.Column):
                groups.append({name, value.name.lower()})
            elif (text := _literal(value)) is not None:
                conditions.append(Condition(name, operator, text))
    return Hints(tuple(conditions), tuple(_merged(groups)))


def make_rows(
    tables: Mapping[str, Sequence[Column]], hints: Hints, rng: random.Random, *, wide: bool
) -> dict[str, list[tuple]]:
    """Rows of every table.

    Args:
      tables: columns by table.
      hints: of the reference query.
      rng: decides everything.
      wide: values hardly recur, so that few rows tie where they are sorted, and some are NULL;
        otherwise values recur, so that groups and intersections are not trivial.
    """
    numbers = range(1000) if wide else range(rng.randrange(2, 50), 60, 9)
    words = [_word(rng) for _ in range(200 if wide else 4)]
    by_group = {
        name: [str(key) for key in rng.sample(range(1, 100), _NUM_KEYS)]
        for group in hints.joined
        for name in [min(group)]
    }
    keys = {name: by_group[min(group)] for group in hints.joined for name in group}
    return {
        table: _table_rows(columns, hints, keys, numbers, words, rng, wide)
        for table, columns in tables.items()
    }


def _table_rows(columns, hints, keys, numbers, words, rng, wide):
    pools = [_pool(column, hints.conditions, rng) for column in columns]
    numeric = [column.kind == "text" and rng.random() < 0.25 for column in columns]
    wanted = [number for number, (hits, _) in enumerate(pools) if hits]
    rows = []
    for number in range(_NUM_ROWS):
        role = number % 3  # 0: every condition holds; 1: all but one; 2: any
        spoilt = rng.choice(wanted) if wanted and role == 1 else None
        row = []
        for index, column in enumerate(columns):
            hits, misses = pools[index]
            if hits and (index != spoilt if role < 2 else rng.random() < 0.4):
                value = rng.choice(hits)
            elif misses and rng.random() < 0.6:
                value = rng.choice(misses)
            elif column.name.lower() in keys:
                known = keys[column.name.lower()]
                value = rng.choice(known[: _NUM_KEYS // 2] if role < 2 else known)
            elif wide and rng.random() < 0.1:
                value = None
            else:
                value = _any(column, numeric[index], numbers, words, rng)
            row.append(_stored(column, value))
        rows.append(tuple(row))
    return rows


def _pool(column: Column, conditions: Sequence[Condition], rng) -> tuple[list[str], list[str]]:
    """Values that satisfy what is asked of a column, as far as one can, and others close by."""
    own = [condition for condition in conditions if condition.column == column.name.lower()]
    candidates: list[str] = []
    for condition in own:
        candidates += _candidates(condition, rng)
    held = {value: sum(_holds(column, c, value) for c in own) for value in candidates}
    most = max(held.values(), default=0)
    # Conditions that exclude each other (of a union, say) each have values that satisfy them.
    alternatives = {value for value in held if held[value]} if most < len(own) else set()
    hits = [value for value in held if held[value] and (held[value] == most or alternatives)]
    return hits, [value for value in held if value not in hits]


def _candidates(condition: Condition, rng) -> list[str]:
    text = condition.value
    if condition.operator == "like":
        filled = "".join(
            _word(rng) if c == "%" else rng.choice(_LETTERS) if c == "_" else c for c in text
        )
        return [filled, text.replace("%", "").replace("_", ""), _word(rng)]
    if (number := _number(text)) is not None:
        steps = [0, 1, -1, 2, 7, -2, -7]
        return [text, *(_plain(number + step) for step in steps if step)]
    return [text, text.swapcase(), f"{text} {_word(rng)}", _word(rng)]


def _holds(column: Column, condition: Condition, value: str) -> bool:
    if condition.operator == "like":
        parts = (".*" if c == "%" else "." if c == "_" else re.escape(c) for c in condition.value)
        return re.fullmatch("".join(parts), value, re.IGNORECASE | re.DOTALL) is not None
    left, right = value, condition.value
    if column.kind in ("integer", "real"):
        numbers = _number(left), _number(right)
        if None not in numbers:
            left, right = numbers
    return {
        "=": left == right,
        "<>": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }[condition.operator]


def _any(column: Column, numeric: bool, numbers, words, rng) -> str:
    if column.kind == "date":
        return f"{rng.randrange(1990, 2024)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
    if column.kind == "real":
        return f"{rng.choice(numbers) + rng.randrange(4) / 4:.2f}"
    if column.kind == "integer" or numeric:
        return str(rng.choice(numbers))
    return rng.choice(words)


def _stored(column: Column, value: str | None) -> str | float | None:
    """As SQLite would store it anyway; here so that types are seen."""
    number = None if value is None else _number(value)
    if number is None or column.kind not in ("integer", "real"):
        return value
    return int(number) if column.kind == "integer" and number == int(number) else number


def _literal(node) -> str | None:
    """The text of a literal, sign included; None: not one."""
    from sqlglot import exp

    if isinstance(node, exp.Neg) and (inner := _literal(node.this)) is not None:
        return f"-{inner}"
    return node.this if isinstance(node, exp.Literal) else None


def _number(text: str) -> float | None:
    """What SQLite takes for a number; Python also reads digits of other scripts."""
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if abs(number) < 2**53 else None  # the others are not whole


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.6g}"


def _word(rng) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randrange(4, 8)))


def _merged(groups: Sequence[set[str]]) -> list[frozenset[str]]:
    """Groups that share a member become one."""
    merged: list[set[str]] = []
    for group in groups:
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group]
        merged.append(group.union(*touching))
    return [frozenset(group) for group in merged]

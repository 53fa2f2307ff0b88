"""What each key of a config means, read from the comments that stand beside it.

A key is explained by the comment lines right above it and the one at the end of its own lines, a
group by its docstring.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

from ssjax.config import ranges


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting."""

    name: str  # dotted
    default: Any
    wanted: str  # kind and range, in words
    meaning: str  # with its unit; empty: the docstring of the group says it


@dataclasses.dataclass(frozen=True)
class Group:
    """Keys that belong together."""

    name: str  # empty: the keys outside of all groups
    meaning: str  # the docstring of its class, laid out as there
    keys: tuple[Key, ...]


def describe(cls: type, name: str = "") -> Iterator[Group]:
    """The keys of a dataclass by group, in the order in which they stand.

    Args:
      cls: whose fields are settings (`ssjax.config.ranges`), or dataclasses of them.
      name: of the group, before the dot.
    """
    comments, groups, keys = comments_of(cls), [], []
    for field in dataclasses.fields(cls):
        hint = ranges.hints(cls)[field.name]
        dotted = f"{name}.{field.name}" if name else field.name
        if dataclasses.is_dataclass(hint):
            groups.append((hint, dotted))
        else:
            wanted = _without_limits(ranges.wanted(hint))
            keys.append(Key(dotted, field.default, wanted, comments.get(field.name, "")))
    yield Group(name, inspect.getdoc(cls) or "", tuple(keys))
    for hint, dotted in groups:
        yield from describe(hint, dotted)


def _without_limits(wanted: str) -> str:
    """What a setting must be, without the limits that every whole number has."""
    least, most = -ranges.INT32_MAX - 1, ranges.INT32_MAX
    return wanted.replace(f" from {least} to {most}", "").replace(f" to {most}", " up")


def comments_of(cls: type) -> dict[str, str]:
    """The comment of each field of a class, by name; fields without one are left out."""
    source = textwrap.dedent(inspect.getsource(cls))
    comments, alone = {}, set()  # by line; lines that hold nothing else
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            comments[line] = token.string.lstrip("#").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(line)
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        lines = [comments[line] for line in range(first, node.end_lineno + 1) if line in comments]
        if lines:
            found[node.target.id] = " ".join(lines)
    return found

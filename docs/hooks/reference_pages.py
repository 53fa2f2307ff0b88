"""Fills the reference pages from the code: the config keys, and what every verb says of itself.

A page holds a comment where the generated part goes, `<!-- config keys -->` or `<!-- verbs -->`.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssjax.config import keys, ranges

PACKAGE = Path(__file__).parents[2] / "ssjax"


def on_page_markdown(markdown: str, **_) -> str:
    """MkDocs calls this with the text of every page."""
    for mark, make in {"<!-- config keys -->": config_keys, "<!-- verbs -->": verbs}.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def config_keys() -> str:
    """A section for each group of keys, a row for each key."""
    groups = {"": keys.Config} | {
        name: hint
        for name, hint in ranges.hints(keys.Config).items()
        if dataclasses.is_dataclass(hint)
    }
    return "\n\n".join(_group(name, cls) for name, cls in groups.items())


def verbs() -> str:
    """A section for each verb, its module's docstring."""
    sections = []
    for path in sorted(PACKAGE.glob("*.py")):
        module = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            sections.append(f"## {path.stem}\n\n{as_markdown(ast.get_docstring(module))}")
    return "\n\n".join(sections)


def as_markdown(docstring: str) -> str:
    """A docstring whose columns stay columns and whose brackets are no links."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(map(_paragraph, paragraphs))


def _paragraph(text: str) -> str:
    if text.startswith("    "):
        return text
    if re.search(r"\S {3,}\S", text):
        return "\n".join(f"    {line}" for line in text.splitlines())
    return re.sub(r"\[(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\[", text)


def _group(name: str, cls: type) -> str:
    rows = [
        f"## {name or 'The run'}",
        "",
        as_markdown(cls.__doc__),
        "",
        "| key | default | may be | meaning |",
    ]
    rows.append("| --- | --- | --- | --- |")
    comments = dict(_comments(cls))
    for field in dataclasses.fields(cls):
        hint = ranges.hints(cls)[field.name]
        if not dataclasses.is_dataclass(hint):
            key = f"{name}.{field.name}" if name else field.name
            wanted = ranges.wanted(hint).replace(f" to {ranges.INT32_MAX}", "")
            cells = [f"`{key}`", f"`{_shown(field.default)}`", wanted, comments[field.name]]
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    """A default as it is written on the command line; nothing for an empty text or tuple."""
    if isinstance(default, tuple):
        return ",".join(str(each) for each in default) or "()"
    return str(default) if default != "" else '""'


def _comments(cls: type) -> Iterator[tuple[str, str]]:
    """What stands beside each field of a dataclass of `keys`, and in the lines above it."""
    source = (PACKAGE / "config" / "keys.py").read_text()
    lines = source.splitlines()
    (tree,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == cls.__name__]
    for field in tree.body:
        if isinstance(field, ast.AnnAssign):
            above = field.lineno - 1
            while lines[above - 1].strip().startswith("#"):
                above -= 1
            said = [line.strip().lstrip("# ") for line in lines[above : field.lineno - 1]]
            _, _, beside = lines[field.end_lineno - 1][field.end_col_offset :].partition("#")
            yield field.target.id, " ".join([*said, beside.strip()]).strip()

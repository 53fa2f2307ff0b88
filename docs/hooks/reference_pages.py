"""Fills the reference pages from the code: the config keys, and what every verb says of itself.

A page holds a comment where the generated part goes, `<!-- config keys -->` or `<!-- verbs -->`.
"""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from ssjax.cli.verbs import VERBS
from ssjax.config import Config, descriptions

PACKAGE = Path(__file__).parents[2] / "ssjax"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with the text of every page."""
    for mark, make in {"<!-- config keys -->": config_keys, "<!-- verbs -->": verbs}.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def config_keys() -> str:
    """A section for each group of keys, a row for each key."""
    return "\n\n".join(map(_group, descriptions.describe(Config)))


def verbs() -> str:
    """A section for each verb, its module's docstring."""
    modules = {verb: ast.parse((PACKAGE / f"{verb}.py").read_text()) for verb in VERBS}
    return "\n\n".join(
        f"## {verb}\n\n{as_markdown(ast.get_docstring(module))}" for verb, module in modules.items()
    )


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


def _group(group: descriptions.Group) -> str:
    rows = [f"## {group.name or 'The run'}", "", as_markdown(group.meaning), ""]
    rows += ["| key | default | may be | meaning |", "| --- | --- | --- | --- |"]
    for key in group.keys:
        cells = [f"`{key.name}`", f"`{_shown(key.default)}`", key.wanted, key.meaning]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    """A default as it is written on the command line; "" and () where it is empty."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "()"
    return str(default) if default != "" else '""'

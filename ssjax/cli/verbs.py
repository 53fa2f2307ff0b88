"""The verbs of the command line: their names, what each does in a line, and how one is run."""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from ssjax.cli import exits

# As they come in the life of a model.
VERBS = (
    "train",
    "evaluate",
    "generate",
    "serve",
    "distill",
    "calibrate",
    "benchmark",
    "verify",
    "convert",
    "export",
    "plan",
    "show",
    "reproduce",
)


def summary(verb: str) -> str:
    """The first line of a verb's docstring; nothing is imported."""
    text = Path(__file__).parents[1].joinpath(f"{verb}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def listing() -> str:
    """What `python -m ssjax` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {summary(verb)}" for verb in VERBS]
    return "\n".join(
        ["Usage: ssjax VERB --name=value ..., or python -m ssjax.VERB --name=value ...", ""]
        + lines
        + ["", "ssjax VERB --help lists the flags of a verb."]
    )


def run(arguments: list[str]) -> int:
    """Runs the verb that a command line begins with, as `python -m ssjax.VERB` does.

    Args:
      arguments: of the process, without its name.

    Returns:
      The exit code, unless the verb exits by itself.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        return exits.print_all(listing())
    verb, *rest = arguments
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        advice = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(VERBS)}"
        return exits.fail(f"unknown verb {verb!r:.80}; {advice}")
    sys.argv = [sys.argv[0], *rest]
    # Not imported: the module would take the place of the function ssjax.train.
    runpy.run_module(f"ssjax.{verb}", run_name="__main__", alter_sys=True)
    return 0

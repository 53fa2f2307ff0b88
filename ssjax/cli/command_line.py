"""The command line as it is read: flags, what a verb asks of them, and keys of the config.

absl parses. Added to it: dashes for underscores, a bare FILE for --config FILE, --config.KEY=VALUE,
flags that must be given, and outputs that are checked before the work begins.
"""

import contextlib
import sys
from collections.abc import Callable

from absl import app, flags

from ssjax.cli import exits, help_text
from ssjax.config import experiment
from ssjax.errors import UserError

EXPERIMENT = "config"  # the flag that names one

# Of the verb of this process, as absl keeps its flags.
_outputs: list[tuple[str, Callable[[str], None]]] = []
_required: list[str] = []
_overrides: dict[str, str] = {}


def require(holder: flags.FlagHolder) -> flags.FlagHolder:
    """Says that a flag must be given; returns it."""
    _required.append(holder.name)
    return holder


def check_later(holder: flags.FlagHolder, check: Callable[[str], None]) -> flags.FlagHolder:
    """Says how the value of a flag is checked once all are parsed, if it has one; returns it."""
    _outputs.append((holder.name, check))
    return holder


def check_outputs() -> None:
    """Checks where results go. Raises: UserError or OSError."""
    for name, check in _outputs:
        if flags.FLAGS[name].value:
            check(flags.FLAGS[name].value)


def overrides() -> dict[str, str]:
    """Text by key of the config, of each --config.KEY=VALUE."""
    return dict(_overrides)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; ends the process on help, or with one line on what cannot be.

    Args:
      argv: of the process, its name first.

    Returns:
      What absl leaves of it: the name.
    """
    argv = [underscored(argument) for argument in argv]
    wants_experiment = EXPERIMENT in flags.FLAGS
    try:
        if wants_experiment:
            argv, changes = experiment.split_overrides(argv)
            _overrides.update(changes)
        if {"--help", "-help", "-h", "--helpshort"} & set(argv):
            sys.exit(exits.print_all(help_text.of_verb(set(_required))))
        if "--helpfull" in argv:
            _show_all(argv)
        flags.FLAGS.set_gnu_getopt()  # flags may follow a FILE
        program, *rest = flags.FLAGS(argv)
        if rest and wants_experiment and flags.FLAGS[EXPERIMENT].value is None:
            flags.FLAGS[EXPERIMENT].value = rest.pop(0)
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; options are written --name=value")
        for name in _required:
            if flags.FLAGS[name].value is None:
                raise UserError(f"--{name} is missing: {flags.FLAGS[name].help}")
    except (flags.Error, UserError) as error:
        sys.exit(exits.fail(str(error)))
    return [program]


def underscored(argument: str) -> str:
    """--batch-sizes=1 as --batch_sizes=1: a flag may be written either way."""
    name, equals, value = argument.partition("=")
    known = name.removeprefix("--").replace("-", "_")
    if name.startswith("--") and known in flags.FLAGS:
        return f"--{known}{equals}{value}"
    return argument


def _show_all(argv: list[str]) -> None:
    """Prints the flags of all libraries too, and exits with 0; absl would exit with 1."""
    with contextlib.suppress(SystemExit):
        app.parse_flags_with_usage(argv)
    sys.exit(0)

"""What --help prints of a verb: its docstring, every flag of it, and every key of a config."""

import sys
import textwrap
from collections.abc import Iterable, Iterator

from absl import flags

from ssjax.config import Config, descriptions

_WIDTH = 100
_REPEAT = ";\n    repeat this option to specify a list of values"  # absl adds it to some


def of_verb(required: set[str]) -> str:
    """The help of the verb of this process.

    Args:
      required: flags that must be given.
    """
    described = [_of_flag(flag, flag.name in required) for flag in _flags()]
    parts = [(sys.modules["__main__"].__doc__ or "").strip(), "\n".join(["Flags:", *described])]
    if "config" in flags.FLAGS:
        parts.append(of_config())
    return "\n\n".join(parts)


def of_config() -> str:
    """Every key of a config: default, meaning with its unit, and range."""
    lines = ["Keys of the config, each with its default and what it may be:"]
    for group in descriptions.describe(Config):
        title = f"{group.name}: {group.meaning}" if group.name else group.meaning
        lines += ["", textwrap.indent(title, "  ")]
        for key in group.keys:
            lines.append(f"    --config.{key.name}={_as_typed(key.default)}  ({key.wanted})")
            lines += _wrapped(key.meaning, "        ")
    return "\n".join(lines)


def _flags() -> Iterator[flags.Flag]:
    """The flags of the verb alone, in the order in which they were defined."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.partition(".")[0] == "ssjax":
            yield from defined


def _of_flag(flag: flags.Flag, required: bool) -> str:
    name = f"[no]{flag.name}" if flag.boolean else flag.name
    default = "" if flag.default is None else _as_typed(flag.default)
    shown = f"  --{name}" + ("" if flag.boolean else f"={default or 'VALUE'}")
    explained = flag.help.removesuffix(_REPEAT)
    if isinstance(flag, flags.EnumFlag):
        values = flag.parser.enum_values
        explained = explained.removeprefix(f"<{'|'.join(values)}>: ")
        explained += f" One of {', '.join(values)}."
    if required:
        explained += " Must be given."
    elif flag.boolean and flag.default:
        explained += " On unless turned off."
    return "\n".join([shown, *_wrapped(explained, "      ")])


def _as_typed(value) -> str:
    """A value as the command line takes it."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)

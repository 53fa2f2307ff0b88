"""Flags that several verbs have, and the values that they stand for."""

import dataclasses
import re
import sys
from collections.abc import Mapping

from absl import flags

from ssjax.cli import command_line
from ssjax.config import Config, DecodeConfig
from ssjax.config import experiment as experiment_lib
from ssjax.config.ranges import INT32_MAX, checked, hints
from ssjax.data import prompt_files
from ssjax.data.prompts import Prompt, check_text
from ssjax.errors import UserError
from ssjax.evaluation import pictures
from ssjax.files import places
from ssjax.files.reading import to_json
from ssjax.files.writing import check_directory, check_file, write_atomic
from ssjax.parallel import distributed
from ssjax.weights.base import read_config

# Digits of other scripts are digits to `str.isdigit`, and some of them no numbers to `int`.
_COUNT = re.compile(r"[0-9]{1,9}")


def define_output(name: str, help_text: str, *, directory: bool = False) -> flags.FlagHolder:
    """A flag that names what the verb writes; checked before the work begins.

    Args:
      name: of the flag.
      help_text: for --help.
      directory: it is a directory that must be new, not a file.
    """
    check = check_directory if directory else check_file
    return command_line.check_later(flags.DEFINE_string(name, "", help_text), check)


def define_plot_flag() -> flags.FlagHolder:
    """Flag that names the picture a verb draws; checked before the work begins."""
    holder = flags.DEFINE_string("plot", "", "Also draw it to this PNG file; needs matplotlib.")
    return command_line.check_later(holder, _check_picture)


def _check_picture(path: str) -> None:
    check_file(path)
    if not path.endswith(".png"):
        raise UserError(f"--plot={path} must end in .png; no other form is drawn")
    pictures.require_matplotlib()


def write_json(path: str, value) -> None:
    """Writes a result for machines, as `write_output`."""
    # Bytes of a path that are no text are half characters here, which JSON can escape.
    write_output(path, to_json(value).encode(errors="backslashreplace"))


def write_output(path: str, content: str | bytes) -> None:
    """Writes a file, once for all processes of a run; an empty path writes nothing."""
    if path and distributed.is_first():
        write_atomic(path, content)


@dataclasses.dataclass(frozen=True)
class ExperimentFlags:
    """Which experiment, and what the command line changes of it."""

    _config: flags.FlagHolder
    _workdir: flags.FlagHolder | None

    def read(self) -> Config:
        """The config of the command line.

        Raises:
          UserError: not given, no such file, an error in it, or a value that cannot work.
        """
        if not self._config.value:
            raise UserError("no experiment; give one with --config experiments/NAME.py")
        changes = command_line.overrides()
        workdir = None if self._workdir is None else self._workdir.value
        if workdir is not None:
            other = changes.setdefault("workdir", workdir)
            if other != workdir:
                raise UserError(
                    f"--workdir={workdir} and --config.workdir={other} are the same setting; give "
                    "one of them"
                )
        return experiment_lib.load(self._config.value, changes)

    def read_run(self, directory: str) -> Config:
        """The config of a run with the changes of the command line; its sizes need no base.

        Args:
          directory: of the run, from a flag that stands in place of --config.

        Raises:
          UserError: an experiment is given too, no such run, or a value that cannot work.
        """
        if self._config.value:
            raise UserError(f"the experiment is that of the run {directory}; leave out --config")
        config = read_config(places.of(directory))
        config = experiment_lib.changed(config, command_line.overrides())
        model = dataclasses.replace(config.model, pretrained="")
        return dataclasses.replace(config, model=model)


def define_experiment_flags(*, workdir: bool = True) -> ExperimentFlags:
    """Flags that name the experiment, beside which --config.KEY=VALUE changes a key.

    Args:
      workdir: the verb works on its run, not on that of another --workdir.
    """
    help_text = "Run directory; the same as --config.workdir."
    return ExperimentFlags(
        flags.DEFINE_string(
            command_line.EXPERIMENT,
            None,
            "Experiment file, optionally with :variant; --config.KEY=VALUE changes it. A bare FILE "
            "is understood too.",
        ),
        flags.DEFINE_string("workdir", None, help_text) if workdir else None,
    )


def define_distributed_flag() -> flags.FlagHolder:
    """Flag that says how the processes of a run find each other, see `start.join`."""
    return flags.DEFINE_string(
        "distributed",
        "auto",
        "auto: found out on TPU, GKE and Slurm; off: this process alone; or "
        "HOST:PORT,NUM_PROCESSES,INDEX.",
    )


@dataclasses.dataclass(frozen=True)
class PromptFlags:
    """Where prompts come from."""

    _prompt: flags.FlagHolder
    _prompts_file: flags.FlagHolder
    _raw: flags.FlagHolder

    @property
    def given(self) -> bool:
        """Whether the command line names any."""
        return bool(self._prompt.value or self._prompts_file.value)

    @property
    def raw(self) -> bool:
        """Prompts are used as they are."""
        return self._raw.value

    def read(self) -> list[Prompt]:
        """The prompts of the command line, of a file (`ssjax.data.prompt_files`), or of stdin.

        Raises:
          UserError: no prompt, two sources, or a file that cannot be read.
        """
        file_name = self._prompts_file.value
        if self._prompt.value and file_name:
            raise UserError("give --prompt or --prompts_file, not both")
        if self._prompt.value:
            given = [prompt_files.from_line(prompt) for prompt in self._prompt.value]
            for number, prompt in enumerate(given, start=1):
                check_text(prompt, f"prompt {number}")
                if prompt_files.is_blank(prompt):
                    raise UserError(f"prompt {number} is empty; give at least one word")
            return given
        if file_name in ("", "-"):
            content = sys.stdin.buffer.read() if sys.stdin else b""
            given = prompt_files.parse_lines(content, "standard input")
        else:
            given = prompt_files.read_file(file_name)
        if all(prompt_files.is_blank(prompt) for prompt in given):
            raise UserError("no prompt; give --prompt TEXT, --prompts_file FILE, or lines on stdin")
        return given


def define_prompt_flags() -> PromptFlags:
    """Flags that say which prompts to decode."""
    return PromptFlags(
        flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times."),
        flags.DEFINE_string(
            "prompts_file", "", "One prompt a line, in .jsonl as JSON; - is standard input."
        ),
        flags.DEFINE_bool("raw", False, "Use prompts as they are, without the task's format."),
    )


class _TextParser(flags.ArgumentParser):
    """Text in which \\n stands for a line break."""

    def parse(self, argument):
        return argument.replace("\\n", "\n")

    def flag_type(self):
        return "string"


def define_decode_flags(*, batches: bool = True) -> dict[str, flags.FlagHolder]:
    """Flags that change a run's decode settings, by field of `DecodeConfig`.

    Args:
      batches: the verb decodes prompts in batches whose size one may choose.
    """
    batch_size = {}
    if batches:
        help_text = "Prompts decoded together."
        batch_size["batch_size"] = flags.DEFINE_integer("batch_size", None, help_text)
    return batch_size | {
        "max_new_tokens": flags.DEFINE_integer("max_new_tokens", None, "Longest output, tokens."),
        "drafter": flags.DEFINE_string(
            "drafter", None, "auto, plain, streams, medusa, prompt_lookup or draft_model."
        ),
        "draft_model": flags.DEFINE_string("draft_model", None, "Directory of a draft model."),
        "num_nodes": flags.DEFINE_integer("num_nodes", None, "Draft nodes per pass."),
        "num_streams": flags.DEFINE_integer("num_streams", None, "Streams used; 0: all."),
        "lookup_nodes": flags.DEFINE_integer(
            "lookup_nodes", None, "Draft nodes added by prompt lookup."
        ),
        "kept_nodes": flags.DEFINE_integer(
            "kept_nodes", None, "Draft nodes that pass the early exit; 0: all."
        ),
        "exit_threshold": flags.DEFINE_float(
            "exit_threshold", None, "Least chance given its parent, by the early exit."
        ),
        "min_node_chance": flags.DEFINE_float(
            "min_node_chance", None, "Least chance of a draft node to be kept; 0: all are drafted."
        ),
        "deferred": flags.DEFINE_bool("deferred", None, "Streams run after verification."),
        "temperature": flags.DEFINE_float("temperature", None, "0: greedy."),
        "top_k": flags.DEFINE_integer("top_k", None, "Sample from the k best; 0: all."),
        "top_p": flags.DEFINE_float("top_p", None, "Sample from the best with this mass."),
        "min_p": flags.DEFINE_float(
            "min_p", None, "Sample from tokens with this share of the largest probability."
        ),
        "repetition_penalty": flags.DEFINE_float(
            "repetition_penalty", None, "Of tokens in prompt or output; 1: off."
        ),
        "presence_penalty": flags.DEFINE_float(
            "presence_penalty", None, "Of tokens in the output; 0: off."
        ),
        "banned_tokens": flags.DEFINE_multi_integer(
            "banned_tokens", None, "An id that is never drawn; may be given several times."
        ),
        "min_new_tokens": flags.DEFINE_integer("min_new_tokens", None, "Shortest output, tokens."),
        "accept": flags.DEFINE_enum(
            "accept", None, ["exact", "typical"], "Which drafts are kept; typical is lossy."
        ),
        "stop": flags.DEFINE_multi(
            _TextParser(),
            flags.ArgumentSerializer(),
            "stop",
            None,
            "Text that ends an output, with \\n for a line break; may be given several times.",
        ),
        "seed": flags.DEFINE_integer("seed", None, "Of sampling."),
    }


def define_calibration_flag() -> flags.FlagHolder:
    """Flag that says whether a calibration of the run chooses how to draft."""
    help_text = "Draft as ssjax.calibrate found fastest; not where a flag here says how to draft."
    return flags.DEFINE_bool("calibration", True, help_text)


def given(holders: Mapping[str, flags.FlagHolder]) -> dict:
    """The flags that the command line set, by name.

    Args:
      holders: by field of `DecodeConfig`.

    Raises:
      UserError: a value out of the field's range.
    """
    values = {name: holder.value for name, holder in holders.items() if holder.value is not None}
    return {
        name: checked(value, hints(DecodeConfig)[name], f"decode.{name}")
        for name, value in values.items()
    }


def define_count(name: str, default: int | None, help_text: str, *, least: int = 1):
    """A flag for a whole number."""
    return flags.DEFINE_integer(name, default, help_text, lower_bound=least, upper_bound=INT32_MAX)


def counts(holder: flags.FlagHolder) -> list[int]:
    """The positive whole numbers of a list flag, each once, in rising order.

    Raises:
      UserError: something else is among them.
    """
    texts = [text.strip() for text in holder.value]
    if not texts or not all(_COUNT.fullmatch(text) and int(text) > 0 for text in texts):
        raise UserError(
            f"--{holder.name}={','.join(texts)} must be positive whole numbers, such as 1,4"
        )
    return sorted({int(text) for text in texts})

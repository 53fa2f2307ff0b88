"""What every entry point shares: one-line errors, exit codes, logging, files for machines.

Exit codes: 0 done; 2 bad input (one line on stderr says what, where and how to mend it);
3 damaged state and 4 diverged training, one line as well (`ssjax.errors`); 42 stopped by a
signal after saving, run the same command again to continue; 130 interrupted where there was
nothing to save.
"""

import contextlib
import dataclasses
import faulthandler
import os
import re
import sys
from collections.abc import Callable, Mapping

import jax
from absl import app, flags, logging
from jax.sharding import Mesh

from ssjax.config import Config, DecodeConfig, MeshConfig
from ssjax.config import experiment as experiment_lib
from ssjax.config.ranges import INT32_MAX, checked, hints
from ssjax.data import prompt_files
from ssjax.data.prompts import Prompt, check_text
from ssjax.errors import UserError
from ssjax.files.reading import to_json
from ssjax.files.writing import check_directory, check_file, write_atomic
from ssjax.messages import say
from ssjax.parallel import partitioning

EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 42
EXIT_INTERRUPTED = 130
_LONGEST_LINE = 1000  # characters; what a damaged file holds may be quoted in it
EXIT_CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags, checks where results go, runs `main` and exits with its code."""

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)  # libraries; ours goes through `say`
        if len(argv) > 1:
            return fail(f"unexpected argument {argv[1]!r}; options are written --name=value")
        return guard(main)

    app.run(guarded, flags_parser=_parse_flags)


def guard(main: Callable[[], int | None]) -> int | None:
    """Runs `main`; whatever a user can mend ends in one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal may not have every character
        stream.reconfigure(errors="backslashreplace")
    try:
        _check_outputs()
        code = main()
        sys.stdout.flush()
        return code
    except UserError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except OSError as error:
        return fail(f"{_place_of(error)}{error.strerror or error}; free it or give another place")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).strip().splitlines()
        return fail(
            f"not enough memory ({reason[0][:160] if reason else 'of the host'}); lower the batch "
            "size or the lengths, or divide the model over more devices"
        )
    except (RuntimeError, AssertionError) as error:
        if partitioning.has_backend():
            raise
        reason = (str(error).strip() or "JAX finds none").splitlines()[0]
        return fail(
            f"no device to compute on (JAX_PLATFORMS={jax.config.jax_platforms or ''}): "
            f"{reason[:200]}; set JAX_PLATFORMS=cpu, or install JAX for the accelerator"
        )


def _place_of(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(names)}: " if names else ""


def outlive(main: Callable[[], int], died: str) -> int:
    """Runs `main` in a child process, so that a crash of native code ends in one line.

    To be called before JAX has started a backend.

    Args:
      main: returns an exit code.
      died: what to say of a crash.

    Raises:
      UserError: a signal killed the child.
    """
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # absl turned it on; pages of traceback would say less
        return main()
    while True:
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            break
        except KeyboardInterrupt:
            pass  # the child got it too, and says so
    if code < 0:
        raise UserError(f"{died} (signal {-code})")
    return code


def restart_with_huge_pages() -> None:
    """Starts this process again with huge pages for malloc, on Linux, unless that is set.

    XLA on CPU allocates the temporaries of every step anew. With 4 KiB pages a training step
    of the sample model takes 78,000 page faults and 700 ms, with huge pages 500 faults and
    300 to 550 ms. glibc reads the setting only when a process starts.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def fail(message: str, code: int = EXIT_BAD_INPUT) -> int:
    """Prints the one line of a failure and returns the exit code for it."""
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code


def write_json(path: str, value) -> None:
    """Writes a result for machines; an empty path writes nothing."""
    if path:
        # Bytes of a path that are no text are half characters here, which JSON can escape.
        write_atomic(path, to_json(value).encode(errors="backslashreplace"))


_outputs: list[tuple[str, Callable]] = []


def define_output(name: str, help_text: str, *, directory: bool = False) -> flags.FlagHolder:
    """A flag that names what the verb writes; checked before the work begins.

    Args:
      name: of the flag.
      help_text: for --help.
      directory: it is a directory that must be new, not a file.
    """
    _outputs.append((name, check_directory if directory else check_file))
    return flags.DEFINE_string(name, "", help_text)


def _check_outputs() -> None:
    for name, check in _outputs:
        if flags.FLAGS[name].value:
            check(flags.FLAGS[name].value)


_overrides: dict[str, str] = {}


def define_experiment_flag() -> flags.FlagHolder:
    """Flag that names the experiment, beside which --config.KEY=VALUE changes a key."""
    return flags.DEFINE_string(
        "config", None, "Experiment file, optionally with :variant; --config.KEY=VALUE changes it."
    )


def experiment(holder: flags.FlagHolder) -> Config:
    """The config of the command line.

    Raises:
      UserError: not given, no such file, an error in it, or a value that cannot work.
    """
    if not holder.value:
        raise UserError("no experiment; give one with --config experiments/NAME.py")
    return experiment_lib.load(holder.value, _overrides)


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


def define_mesh_flag() -> flags.FlagHolder:
    """Flag that says over which devices a model is divided for decoding."""
    return flags.DEFINE_list(
        "mesh", [], "Sizes of data, fsdp and tensor, such as 1,1,4; default: the first device."
    )


def open_mesh(holder: flags.FlagHolder) -> Mesh | None:
    """The mesh of the flag, over all devices; None: not given.

    Raises:
      UserError: not three sizes, or not as many devices.
    """
    sizes = holder.value
    if not sizes:
        return None
    fit = all(_SIZE.fullmatch(size.strip()) for size in sizes)
    if len(sizes) != 3 or not fit or sizes.count("-1") > 1:
        raise UserError(f"--mesh={','.join(sizes)} must be three sizes, such as 1,1,4 or 1,1,-1")
    return partitioning.make_mesh(MeshConfig(*map(int, sizes)))


class _TextParser(flags.ArgumentParser):
    """Text in which \\n stands for a line break."""

    def parse(self, argument):
        return argument.replace("\\n", "\n")

    def flag_type(self):
        return "string"


def define_decode_flags() -> dict[str, flags.FlagHolder]:
    """Flags that change a run's decode settings, by field of `DecodeConfig`."""
    return {
        "max_new_tokens": flags.DEFINE_integer("max_new_tokens", None, "Longest output, tokens."),
        "batch_size": flags.DEFINE_integer("batch_size", None, "Prompts decoded together."),
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
            "exit_threshold", None, "Least chance behind its parent by the early exit."
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
    return flags.DEFINE_bool(
        "calibration", True,
        "Draft as ssjax.calibrate found fastest; not where a flag here says how to draft.",
    )  # fmt: skip


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


# Digits of other scripts are digits to `str.isdigit`, and some of them no numbers to `int`.
_COUNT = re.compile(r"[0-9]{1,9}")
_SIZE = re.compile(r"-1|[1-9][0-9]{0,8}")


def _underscored(argument: str) -> str:
    """--batch-sizes=1 as --batch_sizes=1: a flag may be written either way."""
    name, equals, value = argument.partition("=")
    known = name.removeprefix("--").replace("-", "_")
    return (
        f"--{known}{equals}{value}" if name.startswith("--") and known in flags.FLAGS else argument
    )


def _parse_flags(argv):
    argv = [_underscored(argument) for argument in argv]
    try:
        if "config" in flags.FLAGS:
            argv, overrides = experiment_lib.split_overrides(argv)
            _overrides.update(overrides)
        if {"--help", "-help", "-h", "--helpfull"} & set(argv):
            _show_help(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(fail(_flag_problem(error)))
    except UserError as error:
        sys.exit(fail(str(error)))


def _show_help(argv: list[str]) -> None:
    """Prints what the flags mean, and exits with 0; absl would exit with 1."""
    with contextlib.suppress(SystemExit):
        app.parse_flags_with_usage(["--help" if each == "-h" else each for each in argv])
    sys.exit(0)


def _flag_problem(error: flags.Error) -> str:
    """What absl says of a command line; of a missing flag in plainer words."""
    for name in flags.FLAGS:
        if flags.FLAGS[name].value is None and f"Flag --{name} must have a value" in str(error):
            return f"--{name} is missing: {flags.FLAGS[name].help}"
    return str(error)

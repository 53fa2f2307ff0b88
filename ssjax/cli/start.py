"""The start of every verb: flags, checks of outputs, errors in one line, logging, processes."""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Iterator

import jax
from absl import app, logging

from ssjax import messages
from ssjax.cli import command_line, exits
from ssjax.errors import EXIT_INTERRUPTED, UserError
from ssjax.parallel import distributed, partitioning
from ssjax.training import interruption


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags, checks where results go, runs `main` and exits with its code."""

    def guarded(_):
        logging.set_verbosity(logging.WARNING)  # libraries; ours goes through `say`
        return guard(main)

    app.run(guarded, flags_parser=command_line.parse)


def guard(main: Callable[[], int | None]) -> int | None:
    """Runs `main`; whatever a user can mend ends in one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal may not have every character
        stream.reconfigure(errors="backslashreplace")
    try:
        command_line.check_outputs()
        with _ending_together():
            code = main()
            sys.stdout.flush()
        return code
    except UserError as error:
        return exits.fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        messages.say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return exits.closed_pipe()
    except OSError as error:
        problem = error.strerror or error
        return exits.fail(f"{_place_of(error)}{problem}; free it or give another place")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).strip().splitlines()
        return exits.fail(
            f"not enough memory ({reason[0][:160] if reason else 'of the host'}); lower the batch "
            "size or the lengths, or divide the model over more devices"
        )
    except (RuntimeError, AssertionError) as error:
        if partitioning.has_backend():
            raise
        reason = (str(error).strip() or "JAX finds none").splitlines()[0]
        return exits.fail(
            f"no device to compute on (JAX_PLATFORMS={jax.config.jax_platforms or ''}): "
            f"{reason[:200]}; set JAX_PLATFORMS=cpu, or install JAX for the accelerator"
        )


def _place_of(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(names)}: " if names else ""


def join(how: str) -> None:
    """Joins the processes of a run, of which the first one speaks and prints.

    Args:
      how: value of --distributed.

    Raises:
      UserError: the value is not understood, or the other processes cannot be reached.
    """
    distributed.initialize(how)
    if not distributed.is_first():
        messages.speak(False)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, until the process ends


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """Where the block fails in one of several processes, that one ends soon, threads or not."""
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        code = EXIT_INTERRUPTED if interrupted else getattr(error, "exit_code", 1)
        interruption.end_within(10, code)
        raise


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

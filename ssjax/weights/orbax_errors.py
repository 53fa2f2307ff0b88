"""What Orbax says when it fails: nothing by itself, and the reason in a few words for messages."""

import functools
import logging
import re
import sys

from absl import logging as absl_logging

logged: list[Exception] = []  # failures of Orbax in the background


@functools.cache
def hush() -> None:
    """Leaves a failure of Orbax to the exception that it raises, which becomes one line here.

    It logs the traceback as well; Python logs the errors of tasks that it leaves behind; threads of
    TensorStore print that they came too late for its event loop, which is closed by then.
    """
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_is_not_orbax)
    excepthook, unraisablehook = sys.excepthook, sys.unraisablehook

    def is_late(error):
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    sys.excepthook = lambda *found: is_late(found[1]) or excepthook(*found)
    sys.unraisablehook = lambda found: is_late(found.exc_value) or unraisablehook(found)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname + record.getMessage():
        return True
    if record.exc_info and isinstance(record.exc_info[1], Exception):
        logged.append(record.exc_info[1])
    return False


def reason(error: Exception) -> str:
    """Why, in a few words: the end of a chain of errors."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip() or type(error).__name__
    if chain := re.match(r"[A-Z_]+: (.*?)( \[|$)", text):  # TensorStore's, with a specification
        return ": ".join(chain[1].split(": ")[-2:])
    first = text.splitlines()[0].split(". See full")[0]
    return first if len(first) <= 200 else f"{first[:200]}..."

"""How a verb ends: what it prints last, and its exit code (`ssjax.errors`)."""

import os
import sys

from ssjax.errors import EXIT_BAD_INPUT, EXIT_CLOSED_PIPE

_LONGEST_LINE = 1000  # characters; what a damaged file holds may be quoted in it


def print_all(text: str) -> int:
    """Prints a text to stdout and returns the exit code, also where nobody reads on."""
    try:
        print(text, flush=True)
        return 0
    except BrokenPipeError:
        return closed_pipe()


def closed_pipe() -> int:
    """To be called when who read our output has gone; returns the exit code for that."""
    # Python would complain once more when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_CLOSED_PIPE


def fail(message: str, code: int = EXIT_BAD_INPUT) -> int:
    """Prints the one line of a failure and returns the exit code for it."""
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code

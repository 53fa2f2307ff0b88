"""How a verb ends: its exit codes, and the one line of a failure.

Exit codes: 0 done; 2 bad input (one line on stderr says what, where and how to mend it);
3 damaged state and 4 diverged training, one line as well (`ssjax.errors`); 42 stopped by a
signal after saving, run the same command again to continue; 130 interrupted where there was
nothing to save.
"""

import os
import sys

BAD_INPUT = 2
RESUMABLE = 42
INTERRUPTED = 130
CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended
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
    return CLOSED_PIPE


def fail(message: str, code: int = BAD_INPUT) -> int:
    """Prints the one line of a failure and returns the exit code for it."""
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code

"""Lines on stderr while something goes on: progress and warnings, never a result."""

import sys

_speaks = True
_said: set[str] = set()


def speak(speaks: bool) -> None:
    """Whether lines are printed: of the processes of one run only the first does."""
    global _speaks
    _speaks = speaks


def say(line: str) -> None:
    """Prints one line."""
    if _speaks:
        print(line, file=sys.stderr, flush=True)


def say_once(line: str) -> None:
    """Prints one line unless this process has said it before; an empty one says nothing."""
    if line and line not in _said:
        _said.add(line)
        say(line)

"""Ctrl-C and SIGTERM as a request to stop after the current step."""

import signal
from collections.abc import Callable


class Interruption:
    """While entered, the first SIGINT or SIGTERM sets `requested`, the second one interrupts.

    Outside the training loop nothing has to be saved, and the signals keep their usual
    meaning.

    Args:
      say: prints one line for the user.
    """

    def __init__(self, say: Callable[[str], None]):
        self.requested = False
        self._say = say
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._say(
            f"{signal.Signals(number).name}: saving after this step; once more to stop at once"
        )

"""What other threads want done between two rounds of an engine."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future


class Actions:
    """Actions in the order in which they came; any thread may add them, one runs them."""

    def __init__(self):
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[Callable, Future]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, action: Callable) -> Future:
        """The future of what an action returns or raises."""
        future = Future()
        with self._lock:
            self._waiting.append((action, future))
        return future

    def run(self) -> None:
        """Calls those that wait."""
        for action, future in self._taken():
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

    def refuse(self, error: Exception) -> None:
        """None of those that wait is called any more."""
        for _, future in self._taken():
            future.set_exception(error)

    def _taken(self) -> list[tuple[Callable, Future]]:
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken

"""How far the answers are, on stderr: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssjax.messages import say

_LINES = 10  # where there is no terminal


@contextlib.contextmanager
def shown(split: str, done: int, total: int) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of answers done and tokens written since the start.

    Args:
      split: that is answered.
      done: answers that were there before.
      total: answers in all.
    """
    since = time.perf_counter()
    last = done * _LINES // max(total, 1)

    def speed(tokens: int) -> str:
        return f"{tokens / max(time.perf_counter() - since, 1e-9):,.0f} tokens/s"

    def in_lines(done: int, tokens: int) -> None:
        nonlocal last
        if done * _LINES // total > last:
            last = done * _LINES // total
            say(f"{split}: {done:,} of {total:,} answers, {speed(tokens)}")

    if not sys.stderr.isatty():
        yield in_lines
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}")
    with Progress(
        TextColumn(split), *columns, TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=total, completed=done, state="")
        yield lambda done, tokens: bar.update(task, completed=done, state=speed(tokens))

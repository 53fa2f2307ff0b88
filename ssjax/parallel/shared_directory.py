"""One new directory for all processes of a run, where all of them can write."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ssjax.files import places, writing
from ssjax.parallel import distributed


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[Path]:
    """As `files.writing.new_directory`; to be entered and left by all processes together.

    The first process makes it. It appears under its name once all have left the block.

    Raises:
      UserError: something is there already, or it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        made = distributed.first(lambda: stack.enter_context(writing.new_directory(path)))
        yield places.of(distributed.gather(str(made or ""))[0])
        distributed.gather("")  # none writes there any more

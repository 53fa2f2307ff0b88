"""The user's directory for what can be made or fetched again."""

import os
from pathlib import Path

from ssjax.errors import UserError


def directory(name: str, mend: str) -> Path:
    """A directory of ours in it; not made here.

    Args:
      name: of the directory.
      mend: what to do where there is no such place.

    Raises:
      UserError: the user has no home.
    """
    caches = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # A relative one counts for nothing, after the XDG base directory specification.
        root = Path(caches) if os.path.isabs(caches) else Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError(f"{error} {mend}") from None
    return root / "ssjax" / name

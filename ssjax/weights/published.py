"""Shapes of published models that are part of the package, so that plans need no network.

`published/OWNER/NAME.json`, named as on the hub, has those keys of the model's config.json that say
sizes and mathematics. No weights can be read by them.
"""

import json
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent / "published"


def names() -> list[str]:
    """Hub ids of all models whose shapes are here."""
    return sorted(path.relative_to(_ROOT).with_suffix("").as_posix() for path in _files())


def find(name: str) -> dict[str, Any] | None:
    """The values of a model's config.json, or None if it is not here.

    Args:
      name: a hub id without a revision.
    """
    path = _ROOT / f"{name}.json"
    # Compared as a path of ours: what is not a plain id, such as ../x, is none of them.
    return json.loads(path.read_text()) if path in _files() else None


def _files() -> list[Path]:
    return list(_ROOT.glob("*/*.json"))

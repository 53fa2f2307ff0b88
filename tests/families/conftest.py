"""Every test that takes `case` runs on the golden and on the live model of every family."""

import os
from pathlib import Path

import family_cases
import pytest
from tiny_models import TINY_MODELS


def need_transformers():
    """Skips the test where live models cannot be made."""
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(
    scope="module",
    params=[(tiny, kind) for tiny in TINY_MODELS for kind in ("golden", "live")],
    ids=lambda param: f"{param[0].name}-{param[1]}",
)
def case(request, tmp_path_factory):
    """A model, and what transformers computes with it."""
    tiny, kind = request.param
    if kind == "golden":
        return family_cases.golden_case(tiny)
    need_transformers()
    return family_cases.live_case(tiny, tmp_path_factory.mktemp(tiny.name))


@pytest.fixture(scope="session")
def transformers():
    """Skips where transformers cannot make models."""
    need_transformers()


@pytest.fixture(scope="session")
def shared():
    """The path of a file beside the data directory, or a skip."""

    def find(*parts):
        data = os.environ.get("SSJAX_DATA", Path(__file__).parents[3] / "shared" / "data")
        path = Path(data).parent.joinpath(*parts)
        if not path.exists():
            pytest.skip(
                f"no {'/'.join(parts)} beside the data; set SSJAX_DATA to a directory that has it"
            )
        return path

    return find

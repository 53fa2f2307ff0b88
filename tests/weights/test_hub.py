"""Where a model lies: directories, hub ids with and without a revision, and what is neither."""

import json
import shutil

import huggingface_hub.constants
import pytest
from family_cases import GOLDEN

from ssjax.errors import UserError
from ssjax.weights import base as base_lib
from ssjax.weights import hub
from ssjax.weights.load import load_trained

COMMIT, OLDER = "5f" * 20, "0c" * 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with two revisions of org/tiny, links to blobs; the hub is not reached."""
    repository = tmp_path / "cache" / "models--org--tiny"
    for commit, name in ((COMMIT, "llama"), (OLDER, "qwen2")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for path in (GOLDEN / name).iterdir():
            blob = repository / "blobs" / f"{name}-{path.name}"
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    for reference, commit in (("main", COMMIT), ("v1", OLDER), ("refs/pr/1", OLDER)):
        path = repository / "refs" / reference
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize(
    "name, commit",
    [
        ("org/tiny", COMMIT),
        ("org/tiny@main", COMMIT),
        ("org/tiny@v1", OLDER),
        ("org/tiny@refs/pr/1", OLDER),
        (f"org/tiny@{OLDER}", OLDER),
    ],
)
def test_a_revision_is_fetched_and_known(cache, name, commit, capsys):
    """By its commit, whatever it is called; the weights of an index are links into the cache."""
    base = base_lib.open_base(name, "float32")
    assert (base.name, base.revision, base.title) == (name, commit, f"org/tiny@{commit}")
    assert base.source.family.name == {COMMIT: "Llama", OLDER: "Qwen2"}[commit]
    assert base.model.pretrained == name
    assert base_lib.read_model_config(name, "float32") == base.model
    base.read_params(2, "float32")


def test_the_revision_is_said(cache, capsys, monkeypatch):
    monkeypatch.setattr("ssjax.messages._said", set())
    hub.locate("org/tiny@v1")
    hub.locate("org/tiny@v1")
    said = capsys.readouterr().err
    assert said == f"org/tiny: revision {OLDER} of the Hugging Face hub\n"


def test_the_origin_of_a_directory_is_kept(tmp_path):
    base_lib.keep_origin(tmp_path, "org/tiny@v1", OLDER, "00ff")
    base_lib.keep_origin(tmp_path, "elsewhere", "", "ff00")
    assert json.loads((tmp_path / "base.json").read_text()) == {
        "source": "org/tiny@v1",
        "revision": OLDER,
        "fingerprint": "00ff",
    }


PATHS = {
    "runs/missing": "runs/missing does not exist; give a directory that does, or runs/missing@main",
    "present/missing": "present/missing does not exist; give a directory that does",
    "./org/tiny": "neither a directory nor a hub id",
    "org/tiny/": "neither a directory nor a hub id",
    "/org/tiny": "neither a directory nor a hub id",
    "~/tiny": "neither a directory nor a hub id",
    "../tiny": "neither a directory nor a hub id",
    "a/b/c": "neither a directory nor a hub id",
    "a\\b": "neither a directory nor a hub id",
    "tiny": "neither a directory nor a hub id",
    "org/tiny@": "neither a directory nor a hub id",
    "org/tiny@../main": "neither a directory nor a hub id",
    "org/tiny@refs/../../main": "neither a directory nor a hub id",
    "org/tiny@v 1": "neither a directory nor a hub id",
    "org/ti ny": "neither a directory nor a hub id",
    "org/tiñy": "neither a directory nor a hub id",
    "http://org/tiny": "neither a directory nor a hub id",
    "x" * 1000: "neither a directory nor a hub id",
    "a\0b": "neither a directory nor a hub id",
}


@pytest.mark.parametrize("name, message", PATHS.items(), ids=[repr(name)[:20] for name in PATHS])
def test_what_looks_like_a_path_is_answered_at_once(cache, name, message, monkeypatch):
    def asked(*_, **__):
        pytest.fail("the hub was asked")

    (cache / "present").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    for find in (load_trained, lambda name: base_lib.open_base(name, "float32")):
        with pytest.raises(UserError, match=message) as raised:
            find(name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["org/other", "org/tiny@v2"])
def test_what_the_hub_does_not_have_is_one_line(cache, name):
    """Without a network as well: the cache does not have it, and the hub is not reached."""
    with pytest.raises(UserError, match=f"no directory {name}, and cannot fetch") as raised:
        load_trained(name)
    assert "\n" not in str(raised.value) and "check the id, the revision" in str(raised.value)


def test_a_hub_that_breaks_is_one_line(cache, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="hub: no route to host; check the id") as raised:
        hub.locate("org/tiny")
    assert "and more" not in str(raised.value)


def test_a_directory_goes_before_the_hub(cache):
    shutil.copytree(GOLDEN / "gpt2", cache / "org" / "tiny")
    base = base_lib.open_base("org/tiny", "float32")
    assert (base.source.family.name, base.revision, base.title) == ("GPT-2", "", "org/tiny")


def test_a_packaged_shape_needs_no_network_and_what_was_fetched_goes_before_it(cache, capsys):
    name = "openlm-research/open_llama_7b"
    shape = base_lib.read_model_config(name, "float32")
    assert (shape.embed_dim, shape.num_layers, shape.pretrained) == (4096, 32, name)
    assert f"weights/published/{name}.json" in capsys.readouterr().err
    # Another revision may have another shape; ids with two dots are none.
    for other in (f"{name}@main", "a..b/c"):
        with pytest.raises(UserError, match="cannot fetch"):
            base_lib.read_model_config(other, "float32")
    with pytest.raises(UserError, match="cannot fetch"):
        base_lib.open_base(name, "float32")
    fetched = cache.parent / "cache" / "models--org--tiny"
    shutil.move(fetched, fetched.with_name("models--openlm-research--open_llama_7b"))
    assert base_lib.read_model_config(name, "float32").num_layers < 32

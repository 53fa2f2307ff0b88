import os
import sys
from pathlib import Path

import fsspec
import pytest

from ssjax.errors import StorageError, UserError
from ssjax.files import fetching, places
from ssjax.files.reading import read_lines


def test_paths_of_a_disk_are_those_of_pathlib():
    assert type(places.of("runs/first")) is type(Path("runs/first"))
    assert places.of("gs:/runs") == Path("gs:/runs")  # one slash: a directory of that name
    assert not places.is_bucket("hub:owner/name")
    assert type(places.of("http://host/a")) is type(Path("a"))  # and so nothing that is there


@pytest.mark.parametrize("address", ["gs://bucket/a/b.json", "s3://bucket/a/b.json"])
def test_addresses_stay_addresses(address):
    path = places.of(address)
    assert str(path) == os.fspath(path) == f"{path}" == address
    assert str(path.parent / "c") == address.replace("b.json", "c")
    assert (path.name, path.suffix) == ("b.json", ".json")
    assert str(path.with_name("d")) == address.replace("b.json", "d")
    assert places.of(path) == path and places.is_bucket(path)
    assert hash(places.of(address)) == hash(path)
    assert path.relative_to(path.parent.parent).as_posix() == "a/b.json"


@pytest.mark.parametrize("address", ["gs://", "gs:///"])
def test_an_address_names_a_bucket(address):
    with pytest.raises(UserError, match="the bucket is missing; give gs://BUCKET/NAME"):
        places.of(address)


def test_objects_are_read_as_files_are(bucket):
    path = places.of("gs://bucket/data/train.jsonl")
    assert not path.exists() and not path.parent.is_dir()
    with pytest.raises(UserError, match="^gs://bucket/data/train.jsonl: No such file"):
        read_lines(path)
    path.write_bytes(b"one\ntwo\n")
    assert read_lines("gs://bucket/data/train.jsonl") == ["one", "two"]
    assert path.is_file() and not path.is_dir() and path.parent.is_dir()
    (path.parent / "deep" / "er").write_bytes(b"x")
    assert [p.name for p in path.parent.iterdir()] == ["deep", "train.jsonl"]
    assert [p.name for p in path.parent.glob("t*")] == ["train.jsonl"]
    assert places.files_below(path.parent) == ["deep/er", "train.jsonl"]
    assert places.objects_below(path)["train.jsonl"]["size"] == 8
    places.remove_tree(path.parent)
    places.remove_tree(path.parent)  # what is not there is gone
    assert not bucket


def test_files_below_are_named_alike_on_a_disk(tmp_path):
    for name in ("b", "a/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert places.files_below(tmp_path) == ["a/c", "b"]


def test_a_copy_is_made_once_and_anew_when_the_bucket_changes(bucket, capsys):
    source = places.of("gs://bucket/data")
    for name in ("train.jsonl", "test/1.jsonl", "weights.bin"):
        (source / name).write_bytes(name.encode())
    first = fetching.on_disk(source, ["*.jsonl"], nested=True)
    assert first.name == "data" and places.files_below(first) == ["test/1.jsonl", "train.jsonl"]
    assert (first / "test" / "1.jsonl").read_bytes() == b"test/1.jsonl"
    assert fetching.on_disk(source, ["*.jsonl"], nested=True) == first
    assert capsys.readouterr().err.count("fetching gs://bucket/data: 2 files, 0.0 MB") == 1
    alone = fetching.on_disk(source, ["*.jsonl"])
    assert places.files_below(alone) == ["train.jsonl"]
    (source / "train.jsonl").write_bytes(b"changed")
    second = fetching.on_disk(source, ["*.jsonl"], nested=True)
    assert (second / "train.jsonl").read_bytes() == b"changed"
    assert (first / "train.jsonl").read_bytes() == b"train.jsonl"  # who reads it is not disturbed


def test_a_copy_that_was_cut_short_is_not_taken(bucket, monkeypatch):
    source = places.of("gs://bucket/model")
    for name in ("a.json", "b.json"):
        (source / name).write_bytes(b"{}")
    store = fsspec.filesystem("gs")
    whole = store.get_file

    def cut_short(source, target):
        whole(source, target)
        if source.endswith("b.json"):
            raise ConnectionResetError("the network is gone")

    with monkeypatch.context() as patched:
        patched.setattr(store, "get_file", cut_short)
        with pytest.raises(StorageError, match="cannot read .*b.json: the network is gone"):
            fetching.on_disk(source, ["*.json"])
    caches = Path(os.environ["XDG_CACHE_HOME"])
    assert [p for p in caches.rglob("*") if p.is_file()] == []
    assert len(places.files_below(fetching.on_disk(source, ["*.json"]))) == 2


def test_all_parts_of_a_model_in_parts_are_fetched(bucket):
    for number in (1, 2):
        places.of(f"gs://bucket/m-0000{number}-of-00002.gguf").write_bytes(b"GGUF")
    places.of("gs://bucket/m-00001-of-00003.gguf").write_bytes(b"another")
    file = fetching.file_on_disk(places.of("gs://bucket/m-00001-of-00002.gguf"))
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert file.name == names[0] and places.files_below(file.parent) == names


def test_nothing_to_fetch_is_one_line(bucket):
    with pytest.raises(UserError, match=r"^gs://bucket/none does not exist or holds none of \*.x"):
        fetching.on_disk(places.of("gs://bucket/none"), ["*.x"])


class _Refused(Exception):
    code = 403


class _Busy(Exception):
    code = 503


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_Refused("Forbidden:\nmore"), places.Unreachable),
        (_Busy("later"), places.UnreachableNow),
        (ConnectionResetError("gone"), places.UnreachableNow),
        (PermissionError("no"), places.Unreachable),
        (ValueError(), places.Unreachable),
    ],
)
def test_what_a_store_refuses_is_one_line(bucket, monkeypatch, error, kind):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(fsspec.filesystem("gs"), "exists", refuse, raising=False)
    with pytest.raises(UserError, match="^cannot read gs://bucket/x: .*check the name") as raised:
        places.of("gs://bucket/x").exists()
    assert type(raised.value) is kind and "\n" not in str(raised.value)
    assert raised.value.exit_code == (1 if kind is places.UnreachableNow else 2)


def test_without_its_package_a_bucket_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    with pytest.raises(UserError) as raised:
        places.of("s3://bucket/x").exists()
    known = "s3:// needs s3fs, which is not installed; pip install 'ssjax[s3]'"
    assert str(raised.value) == known


def test_what_is_appended_to_must_be_on_a_disk():
    assert places.on_disk("runs/x", "--target") == Path("runs/x")
    with pytest.raises(UserError, match="^--target=gs://b/x is in a bucket, where nothing can be"):
        places.on_disk("gs://b/x", "--target")

"""What is written to a bucket: single puts, directories whose last file makes them whole."""

import fsspec
import jax.numpy as jnp
import pytest

from ssjax.config import Config
from ssjax.errors import StorageError, UserError
from ssjax.files import fetching, manifest, places
from ssjax.files.writing import (
    check_directory,
    check_file,
    make_directory,
    new_directory,
    new_file,
    write_atomic,
)
from ssjax.weights import adapter


def test_a_file_is_one_put(bucket):
    write_atomic("gs://bucket/a/report.json", "{}\n")
    with new_file(places.of("gs://bucket/a/model.safetensors")) as file:
        file.write_bytes(b"12345")
        assert list(bucket) == ["/bucket/a/report.json"]  # nothing of it is there yet
    assert places.files_below(places.of("gs://bucket/a")) == ["model.safetensors", "report.json"]
    assert places.of("gs://bucket/a/model.safetensors").read_bytes() == b"12345"


def test_places_are_tried_before_the_work_and_left_as_they_were(bucket):
    check_file("gs://bucket/a/report.json")
    check_directory("gs://bucket/new")
    assert make_directory("gs://bucket/run") == places.of("gs://bucket/run")
    assert not bucket
    write_atomic("gs://bucket/new/x", "1")
    with pytest.raises(UserError, match="^gs://bucket/new exists and is not empty; give another"):
        check_directory("gs://bucket/new")
    with pytest.raises(UserError, match="^cannot write gs://bucket/new: it is a directory"):
        check_file("gs://bucket/new")


def test_a_new_directory_is_known_as_unfinished_until_it_is_whole(bucket):
    target = places.of("gs://bucket/target")
    with new_directory("gs://bucket/target") as directory:
        assert directory == target
        write_atomic(directory / "config.json", "{}")
        assert places.files_below(target) == [".incomplete", "config.json"]
    assert places.files_below(target) == ["config.json"]
    with pytest.raises(UserError, match="exists and is not empty"), new_directory(target):
        pass


def test_what_fails_leaves_nothing_and_what_is_killed_is_written_again(bucket):
    target = places.of("gs://bucket/target")
    with pytest.raises(RuntimeError), new_directory(target) as directory:
        write_atomic(directory / "weights", "half")
        raise RuntimeError
    assert not bucket
    for name in (".incomplete", "weights"):  # as a kill leaves it
        write_atomic(target / name, "")
    check_directory(target)
    with new_directory(target) as directory:
        write_atomic(directory / "config.json", "{}")
    assert places.files_below(target) == ["config.json"]


def test_an_adapter_goes_to_a_bucket_and_comes_back(bucket, tmp_path):
    leaves = {"stream_embedding": jnp.arange(8.0).reshape(2, 4)}
    written = adapter.Addition(Config(), leaves, "abc")
    with new_directory("gs://bucket/adapter") as directory:
        adapter.write_addition(directory, written, None)
    adapter.write_addition(tmp_path, written, None)
    assert list(bucket)[-1] == "/bucket/adapter/ssjax.json"  # it is looked for first
    for name in places.files_below(tmp_path):
        assert (places.of("gs://bucket/adapter") / name).read_bytes() == (
            tmp_path / name
        ).read_bytes()
    read = adapter.read_addition(fetching.on_disk(directory, adapter.FILES), None)
    assert read.config == written.config
    assert (read.leaves["stream_embedding"] == leaves["stream_embedding"]).all()


@pytest.fixture
def listed(bucket):
    directory = places.of("gs://bucket/7")
    for name in ("state/d/1", "state/d/2", "metrics/metrics"):
        (directory / name).write_bytes(name.encode())
    manifest.write(directory, {"data": "x"})
    return directory


def test_a_directory_of_a_bucket_is_listed_with_checksums(listed):
    assert manifest.about(listed) == {"data": "x"}
    (listed / "commit_success.txt").write_bytes(b"")
    assert manifest.damage(listed) == ""
    assert manifest.damage(places.of("gs://bucket/8")) == "it is not there"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"state/d/X", "state/d/2 is not what was written"),
        (b"s", "state/d/2 has 1 bytes, 9 were written"),
        (None, "state/d/2: No such file or directory"),
    ],
)
def test_a_changed_object_is_damage(listed, content, problem):
    path = listed / "state" / "d" / "2"
    path.unlink() if content is None else path.write_bytes(content)
    assert manifest.damage(listed) == problem
    assert manifest.damage(listed, only=["metrics/metrics"]) == ""


def test_a_store_that_does_not_answer_is_no_damage(listed, monkeypatch):
    """What is damaged is removed; what nobody could look at stays."""

    def refuse(*_, **__):
        raise ConnectionResetError("gone")

    monkeypatch.setattr(fsspec.filesystem("gs"), "cat_file", refuse)
    for ask in (manifest.damage, manifest.about):
        with pytest.raises(StorageError, match="manifest.json: gone"):
            ask(listed)


def test_a_copy_from_a_disk_is_compared_by_content(bucket, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    manifest.write(tmp_path, {})
    copy = places.of("gs://bucket/copy")
    for name in places.files_below(tmp_path):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    assert manifest.damage(copy) == ""
    (copy / "a").write_bytes(b"2")
    assert manifest.damage(copy) == "a is not what was written"


def test_a_copy_to_a_disk_is_compared_by_sizes(listed, tmp_path):
    for name in places.files_below(listed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((listed / name).read_bytes())
    assert manifest.damage(tmp_path) == ""
    (tmp_path / "state/d/1").write_bytes(b"")
    assert manifest.damage(tmp_path) == "state/d/1 has 0 bytes, 9 were written"

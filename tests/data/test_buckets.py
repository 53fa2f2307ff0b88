"""Data, tokenizers and base models that are read from a bucket."""

import dataclasses
import json

import numpy as np
import pytest
import small_tokenizers
from family_cases import GOLDEN

from ssjax.config import Config
from ssjax.data import builders
from ssjax.data.choice import data_digests, given_tokenizer
from ssjax.data.splits import Reading
from ssjax.data.tokenizers.tokenizer import open_tokenizer
from ssjax.errors import UserError
from ssjax.files import manifest, places
from ssjax.files.reading import to_json
from ssjax.models.parameters import flatten
from ssjax.weights import base as base_lib

RECORDS = [{"prompt": f"Say {i}.", "response": f" {i}!"} for i in range(12)]


def copy(source, target):
    for name in places.files_below(source):
        (places.of(target) / name).write_bytes((source / name).read_bytes())


@pytest.fixture
def data(tmp_path):
    directory = tmp_path / "data"
    (directory / "train").mkdir(parents=True)
    lines = [json.dumps(record) + "\n" for record in RECORDS]
    for name, part in {"train/1": lines[:6], "validation": lines[6:9], "test": lines[9:]}.items():
        (directory / f"{name}.jsonl").write_text("".join(part))
    return directory


def test_records_of_a_bucket_are_those_of_a_disk(bucket, data, tmp_path):
    copy(data, "gs://bucket/data")
    prepared = str(tmp_path / "prepared")
    here, there = (
        builders.open_source("pairs", str(path), prepared, 0, "train")
        for path in (data, "gs://bucket/data")
    )
    assert [here[i] for i in range(len(here))] == [there[i] for i in range(len(there))]
    assert here.directory == there.directory  # of the same content

    config = Config()
    of_pairs = dataclasses.replace(config.data, task="pairs", mixture=("gs://bucket/data=0.5",))
    digests = [
        data_digests(
            dataclasses.replace(config, data=dataclasses.replace(of_pairs, path=str(path)))
        )
        for path in (data, "gs://bucket/data")
    ]
    assert digests[0] == digests[1] and "mixture 1" in digests[0]


def test_one_file_of_a_bucket_is_read(bucket, tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    places.of("gs://bucket/all.jsonl").write_bytes(lines.encode())
    places.of("gs://bucket/other.jsonl").write_bytes(b"?")
    data = dataclasses.replace(Config().data, validation_share=0.3, test_share=0.3)
    shares = Reading.of(data)
    source = builders.open_source(
        "pairs", "gs://bucket/all.jsonl", str(tmp_path / "prepared"), 0, "train", shares
    )
    assert 0 < len(source) < len(RECORDS)


def test_what_is_wrong_with_it_has_file_and_line(bucket, data, tmp_path):
    copy(data, "gs://bucket/data")
    places.of("gs://bucket/data/test.jsonl").write_bytes(b'{"prompt": "a", "response": "b"}\n{\n')
    with pytest.raises(UserError, match=r"/data/test.jsonl:2: not JSON"):
        builders.open_source("pairs", "gs://bucket/data", str(tmp_path / "p"), 0, "train")
    with pytest.raises(UserError, match=r"^gs://bucket/none does not exist or holds none of"):
        builders.open_source("pairs", "gs://bucket/none", str(tmp_path / "p"), 0, "train")


def test_tokenizers_of_a_bucket(bucket):
    for name in ("sentencepiece", "llama"):
        files = getattr(small_tokenizers, name)()
        for file, content in files.items():
            (places.of("gs://bucket") / name / file).write_bytes(content)
        tokenizer = open_tokenizer(f"gs://bucket/{name}")
        assert tokenizer.files == small_tokenizers.small(name).files
    file = given_tokenizer("gs://bucket/sentencepiece/tokenizer.model")
    assert file.encode("one two") == small_tokenizers.small("sentencepiece").encode("one two")
    with pytest.raises(UserError, match="^no tokenizer directory gs://bucket/none; give one"):
        open_tokenizer("gs://bucket/none")
    with pytest.raises(UserError, match="gs://bucket/none.model"):
        given_tokenizer("gs://bucket/none.model")


@pytest.mark.stress
def test_a_base_model_of_a_bucket_has_the_same_weights(bucket, capsys):
    copy(GOLDEN / "llama", "gs://bucket/llama")
    places.of("gs://bucket/llama/checkpoint-9/optimizer.json").write_bytes(b"{}")
    base = base_lib.open_base("gs://bucket/llama", "float32")
    assert base.model == dataclasses.replace(
        base_lib.open_base(GOLDEN / "llama", "float32").model, pretrained="gs://bucket/llama"
    )
    assert base_lib.read_model_config("gs://bucket/llama", "float32") == base.model
    assert "checkpoint-9" not in "".join(places.files_below(base.directory))
    here, there = (
        flatten(base_lib.open_base(name, "float32").read_params(1, "float32"))
        for name in (GOLDEN / "llama", "gs://bucket/llama")
    )
    assert here.keys() == there.keys()
    for name, leaf in here.items():
        np.testing.assert_array_equal(leaf, there[name])


def test_distilled_data_of_a_bucket_is_known(bucket):
    from ssjax.data import distilled

    asked = {"task": "pairs", "weights": "w", "max_prompt_length": 8, "max_target_length": 4}
    about = {"asked": asked, "base": "b", "finished": False}
    places.of("gs://bucket/d/distilled.json").write_bytes(to_json(about).encode())
    with pytest.raises(UserError, match="^gs://bucket/d is not finished"):
        distilled.read_about("gs://bucket/d")


def test_prepared_data_is_shared_through_a_bucket(bucket, data, tmp_path, monkeypatch):
    """One host prepares it, the next takes it from there, and what was cut short is put again."""
    first = builders.open_source("pairs", str(data), "gs://bucket/prepared", 0, "train")
    [kept] = places.of("gs://bucket/prepared").iterdir()
    assert manifest.damage(kept) == "" and list(bucket)[-1].endswith("/manifest.json")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another host"))
    with monkeypatch.context() as patched:
        patched.setattr(builders, "_write", lambda *_: pytest.fail("prepared again"))
        second = builders.open_source("pairs", str(data), "gs://bucket/prepared", 0, "train")
    assert str(second.directory).startswith(str(tmp_path / "another host"))
    assert [first[i] for i in range(len(first))] == [second[i] for i in range(len(second))]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    (kept / "manifest.json").unlink()
    builders.open_source("pairs", str(data), "gs://bucket/prepared", 0, "train")
    assert manifest.damage(kept) == ""

"""Ids of published tokenizers, against ids that the reference libraries gave."""

import json

import pytest
from small_tokenizers import published_path

from ssjax.data.tokenizer import open_tokenizer, tokenizer_from_files
from ssjax.errors import UserError

# Every tokenizer in the file: whether decoding gives each of its texts back.
COVERED = {
    "sentencepiece_test/test_model.model": False,  # normalises, and has no bytes
    "t5/spiece.model": False,
    "c4_bpe_32k/bpe_32k_c4.model": True,
    "llama2/tokenizer.model": True,
    "mistral/tokenizer.model.v1": True,
    "mistral/mistral_instruct_tokenizer_240323.model.v3": True,
    "t5/tokenizer.json": False,
    "llama2/tokenizer.json": True,
    "phi2/tokenizer.json": True,
    "phi3_mini/tokenizer.json": True,
    "gpt2/vocab.json+merges.txt": True,
    "opt/vocab.json+merges.txt": True,
}
TIKTOKEN = ("llama3/tokenizer.model", "qwen/qwen.tiktoken")  # not supported


def golden():
    return json.loads(published_path("golden_encodings.json").read_bytes())["tokenizers"]


def test_nothing_is_left_out():
    assert golden().keys() == {*COVERED, *TIKTOKEN}


@pytest.mark.parametrize("name, lossless", COVERED.items())
def test_golden_ids(name, lossless):
    directory, _, file = name.rpartition("/")
    names = file.split("+")
    as_names = names if file.endswith((".json", ".txt")) else ["tokenizer.model"]
    contents = [published_path(f"{directory}/{name}").read_bytes() for name in names]
    tokenizer = tokenizer_from_files(dict(zip(as_names, contents, strict=True)), name)
    expected = golden()[name]
    assert tokenizer.vocab_size == expected["vocab_size"]
    assert len(expected["cases"]) == 16
    for case in expected["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        if lossless:
            assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("name", TIKTOKEN)
def test_files_of_tiktoken_say_what_they_are(name, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(published_path(name).read_bytes())
    with pytest.raises(UserError, match="a tiktoken file"):
        open_tokenizer(tmp_path)

"""Ids of published tokenizers, against ids that the reference libraries gave."""

import base64
import functools
import itertools
import json
import random
import unicodedata

import pytest
from small_tokenizers import NASTY, as_json, published_path

from ssjax.data.tokenizers.tokenizer import open_tokenizer, tokenizer_from_files
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
TIKTOKEN = ("llama3/tokenizer.model", "qwen/qwen.tiktoken")  # not supported as they are


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


@functools.cache
def qwen_files():
    """vocab.json and merges.txt as Qwen 2 publishes them, from the file of its first version."""
    lines = published_path("qwen/qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - {*printable})
    shown = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}

    def spelled(token):
        return "".join(map(shown.get, token))

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:  # joined as far as lower ranks go
            pairs = (ranks.get(a + b, rank) for a, b in itertools.pairwise(parts))
            best, i = min((pair, i) for i, pair in enumerate(pairs))
            assert best < rank
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(" ".join(map(spelled, parts)))
    vocab = {spelled(token): rank for token, rank in ranks.items()}
    return {"vocab.json": as_json(vocab), "merges.txt": "\n".join(merges).encode()}


@pytest.mark.stress
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_slow_files_of_qwen(name, tmp_path):
    config = published_path(f"qwen/{name}_tokenizer_config.json").read_bytes()
    files = qwen_files() | {"tokenizer_config.json": config}
    tokenizer = tokenizer_from_files(files, name)
    for case in golden()["qwen/qwen.tiktoken"]["cases"]:
        text = unicodedata.normalize("NFC", case["text"])  # the first version did not normalise
        assert case["text"] != text or tokenizer.encode(text) == case["ids"], text
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    parts = [
        *NASTY,
        *"abXY  019.,;!?'-_(){}<|\n\r\t\u00a0\u2028\u0085",
        "'LL",
        "e\u0301",
        "\u0663\u0967",
    ]
    parts += ["<|im_end|>", "<tool_call>", "\u0130\u017f", "\u304b\u3099", "\ud55c", "http://"]
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 20)))
        assert tokenizer.encode(text, special=True) == theirs(text).input_ids, text
        ids = theirs(text, split_special_tokens=True).input_ids
        assert tokenizer.encode(text) == ids, text

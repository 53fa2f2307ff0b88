"""Tokenizers from the metadata of GGUF files against those that they were made from."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as messages

from ssjax.data.tokenizers.gguf import tokenizer_files
from ssjax.data.tokenizers.tokenizer import (
    SentencePieceTokenizer,
    tokenizer_from_files,
    train_tokenizer,
)
from ssjax.errors import UserError
from ssjax.files.gguf import GgufHeader

TEXTS = ["a rainy day", "  two  spaces", "day\n\nrain", "Über 123 x1234", "it's </s> RAIN", ""]


def opened(template=None, **metadata):
    values = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    values |= {"tokenizer.chat_template": template} if template else {}
    return tokenizer_from_files(tokenizer_files(GgufHeader(Path("m.gguf"), values, {})), "m.gguf")


def bytes_metadata(pre="gpt-2", **changes):
    """Byte-level: every byte, and one merge."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<s>", "</s>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "12", "123", "[PAD1]"]
    kinds = [3, 3, 3] + [1] * (len(tokens) - 4) + [5]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": np.array(kinds),
        "merges": ["1 2", "12 3"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | changes


def pieces_of(tokenizer, text):
    return [tokenizer.token_bytes(i).decode(errors="replace") for i in tokenizer.encode(text)]


@pytest.mark.parametrize("adds_space", [True, False])
def test_sentencepiece_pieces_and_scores(adds_space):
    """User-defined pieces are stored as they read, and <unk> may be called a control token."""
    symbols = ["\n\n", "  "]
    original = train_tokenizer(["a rainy day, rain all day"] * 3, 290, symbols=[symbols[0]])
    model = messages.ModelProto.FromString(original.files["tokenizer.model"])
    model.normalizer_spec.add_dummy_prefix = adds_space
    model.pieces.add(
        piece="\u2581\u2581", score=0, type=messages.ModelProto.SentencePiece.USER_DEFINED
    )
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    kinds = [3 if piece.type == 2 else piece.type for piece in model.pieces]
    ours = opened(
        model="llama",
        tokens=[p.piece.replace("\u2581", " ") if p.type == 4 else p.piece for p in model.pieces],
        scores=np.array([piece.score for piece in model.pieces], np.float32),
        token_type=np.array(kinds),
        bos_token_id=2,
        eos_token_id=3,
        unknown_token_id=1,
        padding_token_id=0,
        add_space_prefix=adds_space,
    )
    assert isinstance(ours, SentencePieceTokenizer)
    assert (ours.prefix_ids, ours.eos_ids, ours.pad_id) == ((2,), (3,), 0)
    for text in TEXTS:
        assert ours.encode(text) == expected.encode(text), text


def test_cuts_of_each_kind():
    """Digits: GPT-2 takes them together, smollm and qwen2 one by one, llama-bpe by threes."""
    found = {
        pre: pieces_of(opened(**bytes_metadata(pre)), "1234")
        for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2")
    }
    assert found == {
        "gpt-2": ["123", "4"],
        "smollm": ["1", "2", "3", "4"],
        "llama-bpe": ["123", "4"],
        "qwen2": ["1", "2", "3", "4"],
    }
    assert pieces_of(opened(**bytes_metadata("llama-bpe")), "9123")[0] == "9"
    assert pieces_of(opened(**bytes_metadata("gpt-2")), "9123") == ["9", "123"]
    assert pieces_of(opened(**bytes_metadata("llama-bpe")), "9123") == ["9", "12", "3"]


def test_special_ids_and_template():
    ours = opened("{{ messages[0].content }}<|im_end|>", **bytes_metadata(eot_token_id=2))
    assert (ours.prefix_ids, ours.eos_ids) == ((), (1, 2))
    assert ours.vocab_size == len(bytes_metadata()["tokens"]) - 1  # without what only pads
    messages_ = [{"role": "user", "content": "1"}]
    ids = ours.encode_chat(messages_, add_generation_prompt=False)
    assert len(ids) == 2 and ids[1] == 2
    assert 1 not in ours.encode("</s>") and ours.encode("</s>", special=True) == [1]
    assert opened(**bytes_metadata("llama-bpe")).prefix_ids == (0,)
    assert opened(**bytes_metadata("llama-bpe", add_bos_token=False)).prefix_ids == ()
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'|tokenizer.ggml.pre is \"tekken\""),
        ({"pre": None}, "--tokenizer"),
        ({"model": "bert"}, "tokenizer.ggml.model"),
        ({"tokens": None}, "tokens is not"),
        ({"merges": None}, "merges is missing"),
        ({"token_type": np.array([1, 1])}, "have 2 types"),
        ({"token_type": np.array([9] * 262)}, "types that are not known"),
        ({"eos_token_id": 999}, "eos_token_id is 999"),
        ({"model": "llama"}, "scores is not"),
        ({"model": "llama", "scores": np.zeros(3)}, "have 3 scores"),
    ],
    ids=str,
)
def test_what_is_not_known_or_damaged(changes, words):
    with pytest.raises(UserError, match=words) as error:
        opened(**bytes_metadata(**changes))
    assert "\n" not in str(error.value)

"""Tokenizers from the metadata of GGUF files, as the files that Hugging Face would have.

    tokenizer.ggml.model "gpt2"    tokenizer.json: byte-level BPE, cut as `tokenizer.ggml.pre` says
    tokenizer.ggml.model "llama"   tokenizer.model: SentencePiece, byte pairs by their scores

With them stand tokenizer_config.json (special tokens, bos, chat template) and
generation_config.json (what ends a completion).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssjax.data.tokenizers import merges
from ssjax.data.tokenizers.pieces import SPACE
from ssjax.data.tokenizers.settings import CONFIG, GENERATION
from ssjax.errors import UserError
from ssjax.files.gguf import GgufHeader
from ssjax.files.objects import show

_TOKENIZER_JSON, _TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"

# The types of tokens are SentencePiece's.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}

_LLAMA3_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2_CUTS = merges.cuts("GPT2Tokenizer", add_prefix_space=False)
_BYTE_LEVEL = _GPT2_CUTS["pre_tokenizer"]


def _cut_first(step: Mapping[str, Any], *, then_gpt2: bool) -> dict[str, Any]:
    """Cuts by another rule before GPT-2's, or in its place."""
    steps = [step, {**_BYTE_LEVEL, "use_regex": then_gpt2}]
    pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
    return {"pre_tokenizer": pre_tokenizer, "decoder": _BYTE_LEVEL}


_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = _cut_first({**_SPLIT, "pattern": {"Regex": _LLAMA3_CUTS}}, then_gpt2=False)
_QWEN2 = merges.cuts("Qwen2Tokenizer", add_prefix_space=False)

# How each `tokenizer.ggml.pre` cuts a text before merging.
_CUTS = {
    "gpt-2": _GPT2_CUTS,
    "smollm": _cut_first(_DIGITS, then_gpt2=True),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
_WHOLE_WORDS = ("llama-bpe", "llama-v3", "llama3")  # a word that is a token is never merged
_ADD_BOS = _WHOLE_WORDS  # in front of prompts, where the file does not say


def tokenizer_files(header: GgufHeader) -> dict[str, bytes]:
    """The files of a tokenizer directory that metadata amount to.

    Raises:
      UserError: a kind of tokenizer that is not known, or metadata that are not whole.
    """
    metadata = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    kind, pre = metadata.get("model"), metadata.get("pre")
    if kind not in ("gpt2", "llama"):
        raise _not_known(header, "tokenizer.ggml.model", kind, ("gpt2", "llama"))
    if kind == "gpt2" and (not isinstance(pre, str) or pre not in _CUTS):
        raise _not_known(header, "tokenizer.ggml.pre", pre, tuple(_CUTS))
    tokens, kinds = _tokens(header, metadata)
    if kind == "gpt2":
        files = {_TOKENIZER_JSON: _describe_merges(header, metadata, tokens, kinds)}
    else:
        files = {_TOKENIZER_MODEL: _sentencepiece(header, metadata, tokens, kinds)}
    add_bos = metadata.get("add_bos_token", kind == "llama" or pre in _ADD_BOS)
    config: dict[str, Any] = {"add_bos_token": bool(add_bos)}
    for role, theirs in _ROLES.items():
        token_id = _token_id(header, metadata, theirs, tokens)
        if token_id is not None:
            config[f"{role}_token"] = tokens[token_id]
    if kind == "llama":
        config["tokenizer_class"] = "LlamaTokenizer"
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        config["chat_template"] = template
    ends = [_token_id(header, metadata, name, tokens) for name in ("eos", "eot", "eom")]
    generation = {"eos_token_id": list(dict.fromkeys(i for i in ends if i is not None))}
    files[CONFIG] = json.dumps(config).encode()
    files[GENERATION] = json.dumps(generation).encode()
    return files


def _not_known(header: GgufHeader, key: str, value: Any, known: tuple[str, ...]) -> UserError:
    return UserError(
        f"{header.path}: {key} is {show(value)}, and only {', '.join(known)} are known; give the "
        "directory of the model's tokenizer with --tokenizer of python -m ssjax.convert, or "
        "--config.data.tokenizer of a training"
    )


def _damaged(header: GgufHeader, what: str) -> UserError:
    return UserError(f"{header.path}: {what}; fetch the file again")


def _tokens(header: GgufHeader, metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens and their types by id."""
    tokens = metadata.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _damaged(header, "tokenizer.ggml.tokens is not a list of texts")
    kinds = metadata.get("token_type")
    kinds = [_NORMAL] * len(tokens) if kinds is None else _numbers(header, metadata, "token_type")
    if len(kinds) != len(tokens):
        raise _damaged(header, f"{len(tokens)} tokens have {len(kinds)} types")
    if not set(kinds) <= set(range(_NORMAL, _BYTE + 1)):
        raise _damaged(header, "tokens have types that are not known")
    return tokens, kinds


def _token_id(header, metadata: Mapping[str, Any], name: str, tokens: list[str]) -> int | None:
    """An id that the metadata name; None: they do not."""
    found = metadata.get(f"{name}_token_id")
    if found is not None and not (type(found) is int and 0 <= found < len(tokens)):
        raise _damaged(header, f"tokenizer.ggml.{name}_token_id is {show(found)}, no token's id")
    return found


def _numbers(header: GgufHeader, metadata: Mapping[str, Any], key: str) -> list:
    values = metadata.get(key)
    if not isinstance(values, np.ndarray):
        raise _damaged(header, f"tokenizer.ggml.{key} is not a list of numbers")
    return values.tolist()


def _describe_merges(header, metadata, tokens: list[str], kinds: list[int]) -> bytes:
    """A tokenizer.json; tokens that fill a padded table up are left out."""
    pairs = metadata.get("merges")
    if not isinstance(pairs, list):
        raise _damaged(header, "tokenizer.ggml.merges is missing")
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] != _UNUSED}
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[i] == _CONTROL,
        }
        for i, token in enumerate(tokens)
        if kinds[i] in (_CONTROL, _USER_DEFINED)
    ]
    description = {
        "version": "1.0",
        "added_tokens": added,
        **_CUTS[metadata["pre"]],
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": pairs,
            "ignore_merges": metadata["pre"] in _WHOLE_WORDS,
        },
    }
    return json.dumps(description).encode()


def _sentencepiece(header, metadata, tokens: list[str], kinds: list[int]) -> bytes:
    """A SentencePiece model of the pieces, their scores and types."""
    from sentencepiece import sentencepiece_model_pb2 as messages

    scores = _numbers(header, metadata, "scores")
    if len(scores) != len(tokens):
        raise _damaged(header, f"{len(tokens)} tokens have {len(scores)} scores")
    unknown = _token_id(header, metadata, "unknown", tokens) or 0
    model = messages.ModelProto()
    for i, (token, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
        if kind == _UNKNOWN or i == unknown:  # some files call it a control token
            kind = _UNKNOWN if i == unknown else _CONTROL
        if kind == _USER_DEFINED:  # stored as they read, but found where spaces are marked
            token = token.replace(" ", SPACE)
        model.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = messages.TrainerSpec.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = _BYTE in kinds
    trainer.unk_id = unknown
    for role in ("bos", "eos", "pad"):
        token_id = _token_id(header, metadata, _ROLES[role], tokens)
        setattr(trainer, f"{role}_id", -1 if token_id is None else token_id)
        if token_id is not None:
            setattr(trainer, f"{role}_piece", tokens[token_id])
    trainer.unk_piece = tokens[unknown]
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(metadata.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(metadata.get("remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    return model.SerializeToString()

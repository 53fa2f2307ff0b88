"""Byte-level BPE from vocab.json and merges.txt, as the description of a tokenizer.json.

The two files hold tokens and merges alone. How a text is cut before merging is a matter of the
class that reads them, so that the same files may mean several tokenizers:

    GPT2Tokenizer, CodeGenTokenizer   GPT-2's cuts (OPT and Phi have them too)
    Qwen2Tokenizer                    every digit alone, letters in any case, NFC

Ids are those that transformers gives for such a directory.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ssjax.data.tokenizers.settings import CONFIG, TO_JSON, Settings, read_fields
from ssjax.errors import UserError
from ssjax.files.reading import decode_text, split_lines

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"

_QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# For directories that name no class: that of the model's type; None: there are several.
_CLASS_OF_TYPE = {
    "gpt2": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma2", "gemma3_text")),
}
# Special tokens of a vocab.json that no other file explains: RoBERTa's, which OPT has too, or
# GPT-2's. RoBERTa's vocabulary has GPT-2's as well, unused.
_OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_OPT_OWN = {"<s>", "<pad>", "</s>", "<unk>"}
_GPT2_SPECIAL = ("<|endoftext|>",)


@dataclasses.dataclass(frozen=True)
class Merges:
    """What the two files mean."""

    description: dict[str, Any]  # the object of a tokenizer.json
    class_to_keep: str | None  # what tokenizer_config.json must say to be read alike again
    prefix: str | None  # the token that begins every prompt unless other files say otherwise
    files: dict[str, bytes]


def describe_merges(files: Mapping[str, bytes], settings: Settings, where: str) -> Merges:
    """Reads the two files as the class of transformers does that the directory names.

    Args:
      files: names and contents.
      settings: what the files beside them say.
      where: names the place in error messages.

    Raises:
      UserError: a file is malformed, or the class is not one that we know.
    """
    fields = read_fields(files, VOCAB_FILE, where)
    vocab = fields.values
    for token, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0:
            raise fields.wrong(token, "the id of a token")
    lines = split_lines(decode_text(files[MERGES_FILE], f"{where}/{MERGES_FILE}"))
    own_class = _class_of_vocabulary(vocab, settings)
    name = settings.tokenizer_class or _inferred_class(own_class, settings, where)
    own_cuts = cuts(name, bool(settings.add_prefix_space))
    if own_cuts is None:
        raise UserError(
            f"{where}/{CONFIG}: the tokenizer_class {name!r} has rules for {VOCAB_FILE} and "
            f"{MERGES_FILE} that are not known here; {TO_JSON}"
        )
    # OPT begins every text with </s>; where a class is named, another key says so.
    is_opt = not settings.tokenizer_class and name == own_class and vocab.keys() >= _OPT_OWN
    special = _OPT_SPECIAL if is_opt else _GPT2_SPECIAL
    description = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": vocab[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in special
            if token in vocab
        ],
        **own_cuts,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [line for line in lines if line and not line.startswith("#version")],
        },
    }
    kept = {name: files[name] for name in (VOCAB_FILE, MERGES_FILE)}
    to_keep = name if not settings.tokenizer_class and name != own_class else None
    return Merges(description, to_keep, "</s>" if is_opt else None, kept)


def cuts_like(description: Mapping[str, Any], tokenizer_class: str) -> bool:
    """Whether a description cuts texts as a class does, which must be one that is known."""
    own = cuts(tokenizer_class, add_prefix_space=False)
    return (description.get("decoder") or {}).get("type") == "ByteLevel" and all(
        _without_offsets(description.get(part)) == _without_offsets(own.get(part))
        for part in ("normalizer", "pre_tokenizer")
    )


def _without_offsets(part: Any) -> Any:
    """A part without the keys that say nothing about ids."""

    def kept(values):
        return {key: value for key, value in values.items() if key != "trim_offsets"}

    return json.loads(json.dumps(part), object_hook=kept)


def cuts(name: str, add_prefix_space: bool) -> dict[str, Any] | None:
    """How a class cuts a text; None: not known."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": True,
    }
    if name in ("GPT2Tokenizer", "CodeGenTokenizer"):
        return {"pre_tokenizer": byte_level, "decoder": byte_level}
    if name == "Qwen2Tokenizer":
        split = {
            "type": "Split",
            "pattern": {"Regex": _QWEN2_CUTS},
            "behavior": "Isolated",
            "invert": False,
        }
        steps = [split, {**byte_level, "use_regex": False}]
        return {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "decoder": byte_level,
        }
    return None


def _class_of_vocabulary(vocab: Mapping[str, Any], settings: Settings) -> str | None:
    """That of GPT-2's or OPT's vocabulary, which hold all their special tokens."""
    tokens = {token.content for token in settings.added_tokens.values()}
    has_all = vocab.keys() >= tokens.union(settings.special_tokens.values())
    is_known = vocab.keys() >= {*_GPT2_SPECIAL} or vocab.keys() >= _OPT_OWN
    return "GPT2Tokenizer" if has_all and is_known else None


def _inferred_class(own_class: str | None, settings: Settings, where: str) -> str:
    """The class of a directory that names none, where there is no doubt.

    Args:
      own_class: of `_class_of_vocabulary`.
      settings, where: as of `describe_merges`.
    """
    name = _CLASS_OF_TYPE.get(settings.model_type, own_class)
    if name is None:
        raise UserError(
            f"tokenizer {where}: {CONFIG} has no tokenizer_class, without which {VOCAB_FILE} and "
            f"{MERGES_FILE} may mean several tokenizers; put it there, or {TO_JSON}"
        )
    return name

"""A SentencePiece model as the description of a tokenizer.json, for tools that read no other.

Byte-pair encodings alone: the merges of a model are all pairs of pieces that make a third, the
better piece first. What the library `tokenizers` does in other ways is spelled out here: a space
in front of a text that begins with a symbol, and symbols that no merge may cross.
"""

import base64
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ssjax.data.tokenizers.settings import AddedToken

SPACE = "\u2581"  # what marks a space inside pieces

# How the regular expressions begin that change a text where it begins; see
# `tokenizer_json._without_space`.
AT_START = r"\A"

_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
}


def describe_pieces(
    model_bytes: bytes,
    encode: Callable[[str], list[int]],
    added: Mapping[int, AddedToken],
    *,
    adds_space: bool,
    space_after_added: bool,
    matches_special: bool,
) -> dict[str, Any] | None:
    """The object of a tokenizer.json with the same ids.

    Args:
      model_bytes: a serialized SentencePiece model.
      encode: ids of a text to which no space is added, by that model.
      added: special pieces and tokens that other files add, by id.
      adds_space: whether a space is put in front of a text.
      space_after_added: and in front of text after an added token.
      matches_special: whether special tokens are looked for in a text.

    Returns:
      None: a kind of model that has no such form.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages

    model = messages.ModelProto.FromString(model_bytes)
    kind = messages.ModelProto.SentencePiece
    pieces = [piece.piece for piece in model.pieces]
    scores = {p.piece: p.score for p in model.pieces if p.type == kind.NORMAL}
    renamed = {i for i in added if i < len(pieces) and added[i].content != pieces[i]}
    still_written = any(pieces[i] in scores for i in renamed)  # by the model itself
    is_bpe = model.trainer_spec.model_type == messages.TrainerSpec.BPE
    if not is_bpe or still_written or not _is_usual(model):
        return None
    vocab = {piece: i for i, piece in enumerate(pieces) if i not in renamed}
    vocab |= {token.content: i for i, token in added.items()}
    symbols = [p.piece for p in model.pieces if p.type == kind.USER_DEFINED and p.piece in vocab]
    symbols.sort(key=len, reverse=True)
    others = {piece: i for piece, i in vocab.items() if piece not in symbols}
    cut = _cut_at_symbols(symbols, others, encode) if symbols else None
    if symbols and cut is None:
        return None
    late = [] if space_after_added else _found_late(added, matches_special)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(i, token, late) for i, token in sorted(added.items())],
        "normalizer": _normalizer(model.normalizer_spec, adds_space, late),
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": _decoder(adds_space),
        "model": _BPE
        | {
            "unk_token": _unknown(added, pieces, model.trainer_spec.unk_id),
            "byte_fallback": model.trainer_spec.byte_fallback,
            "ignore_merges": bool(symbols),
            "vocab": vocab,
            "merges": _merges(scores),
        },
    }


def _is_usual(model) -> bool:
    """Whether spaces are marked in front of words, and every piece may be used."""
    return (
        not model.trainer_spec.treat_whitespace_as_suffix
        and model.normalizer_spec.escape_whitespaces
        and not any(piece.type == piece.UNUSED for piece in model.pieces)
    )


def _found_late(added: Mapping[int, AddedToken], matches_special: bool) -> list[str]:
    """Tokens that are looked for in the normalised text.

    What lies between others is normalised apart.
    """
    found = (token for token in added.values() if matches_special or not token.special)
    return sorted({token.content for token in found})


def _added_token(token_id: int, token: AddedToken, late: Collection[str]) -> dict[str, Any]:
    """late: tokens that are looked for in the normalised text."""
    return {
        "id": token_id,
        "content": token.content,
        "single_word": token.single_word,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": token.content in late,
        "special": token.special,
    }


def _decoder(adds_space: bool) -> dict[str, Any]:
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *([strip] if adds_space else []),
        ],
    }


def _unknown(added: Mapping[int, AddedToken], pieces: list[str], unk_id: int) -> str:
    return added[unk_id].content if unk_id in added else pieces[unk_id]


def _merges(scores: Mapping[str, float]) -> list[list[str]]:
    """Pairs of pieces that make a third, in the order in which SentencePiece joins them."""
    merges = []
    for piece in sorted(scores, key=scores.get, reverse=True):
        pairs = [[piece[:i], piece[i:]] for i in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        # Of two that overlap, x+y and y+z, SentencePiece joins the left one.
        merges += sorted(pairs, key=lambda pair: not piece.startswith(pair[1]))
    return merges


def _normalizer(spec, adds_space: bool, begins: list[str]) -> dict[str, Any]:
    """begins: tokens in front of which no space is put at the start of a text."""
    steps = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append(_replace(rf"{AT_START} +|[ {SPACE}]+\z|(?<= ) +", ""))
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if adds_space:
        unless = f"(?!{'|'.join(map(_escaped, begins))})" if begins else ""
        steps.append(_replace(rf"{AT_START}{unless}(?=[\s\S])", SPACE))
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _cut_at_symbols(
    symbols: list[str], others: Mapping[str, int], encode: Callable[[str], list[int]]
) -> dict[str, Any] | None:
    """Cuts symbols out, so that each is looked up as a whole; None: not possible.

    What lies between two symbols is then looked up as a whole too. Where it spells a piece that
    the model does not make of it ("<0x0A>", "<s>"), it is cut at a border of the pieces that the
    model makes.

    Args:
      symbols: the longest first.
      others: ids of all other pieces.
      encode: as of `describe_pieces`.
    """
    anywhere = "|".join(map(_escaped, symbols))
    before = "|".join([AT_START, *(f"(?<={_escaped(symbol)})" for symbol in symbols)])
    cuts = []
    for piece, token_id in others.items():
        ids = encode(piece)
        if ids == [token_id]:
            continue
        borders = range(1, len(piece))
        border = next((i for i in borders if encode(piece[:i]) + encode(piece[i:]) == ids), None)
        if border is None:
            return None
        head, tail = _escaped(piece[:border]), _escaped(piece[border:])
        cuts.append(rf"{head}(?={tail}(?:\z|{anywhere}))")
    pattern = f"{anywhere}|(?:{before})(?:{'|'.join(cuts)})" if cuts else anywhere
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _escaped(text: str) -> str:
    """A text as a regular expression of the library's, which knows no escaped letters."""
    return re.sub(r"[^\w\s]", lambda match: f"\\x{{{ord(match[0]):X}}}", text)

"""The bytes that a token stands for, by the decoder of a tokenizer.json."""

import functools
import re
from collections.abc import Callable
from typing import Any

from ssjax.errors import UserError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_decoder(decoder: dict[str, Any] | None, where: str) -> Callable[[str], bytes]:
    """What a token of the vocabulary stands for, given the decoder of a tokenizer.json.

    Raises:
      UserError: the decoder has a step that is neither byte-level nor SentencePiece's.
    """
    members = [decoder or {"type": "none"}]
    if members[0]["type"] == "Sequence":
        members = members[0]["decoders"]
    kinds = {member["type"] for member in members}
    if kinds == {"ByteLevel"}:
        return _from_byte_level
    # Strip takes off the space that encoding added, which `decode` does; Fuse joins tokens.
    if kinds <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}:
        marks = []
        for member in members:
            if member["type"] == "Replace" and "String" in member["pattern"]:
                marks.append((member["pattern"]["String"], member["content"]))
            elif member["type"] == "Metaspace":
                marks.append((member["replacement"], " "))
        return functools.partial(_from_marked, tuple(marks), "ByteFallback" in kinds)
    raise UserError(
        f"tokenizer {where}: tokenizer.json has the decoder {', '.join(sorted(kinds))}, which is "
        "not supported; use a model with a byte-level or SentencePiece tokenizer"
    )


def _from_marked(marks: tuple[tuple[str, str], ...], byte_fallback: bool, token: str) -> bytes:
    """SentencePiece's way: marks for spaces, and <0x0A> for a byte outside the vocabulary."""
    if byte_fallback and (match := _BYTE.fullmatch(token)):
        return bytes([int(match[1], 16)])
    for mark, text in marks:
        token = token.replace(mark, text)
    return token.encode()


def _from_byte_level(token: str) -> bytes:
    """GPT-2's way: a printable character for each byte."""
    byte_of = _byte_of_character()
    if byte_of.keys() >= set(token):
        return bytes(byte_of[character] for character in token)
    return token.encode()  # a token that was put into the vocabulary by hand


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Printable bytes stand for themselves, the others follow from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + i): byte for i, byte in enumerate(others)}

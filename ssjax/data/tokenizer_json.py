"""Tokenizers that the library `tokenizers` runs: tokenizer.json, or vocab.json and merges.txt.

Either becomes a description, the object of a tokenizer.json. What the library has no option for
is an edit of that description: special tokens that only other files name, and encoding without a
space in front. Decoding joins the bytes of the tokens, so that the text of a token never depends
on what comes later.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

from ssjax.data.tokenizer_base import BaseTokenizer
from ssjax.data.tokenizer_settings import Settings, read_json
from ssjax.errors import UserError

FILE = "tokenizer.json"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

# Special tokens of a vocab.json that no other file explains: RoBERTa's, which OPT has too, or
# GPT-2's. RoBERTa's vocabulary has GPT-2's as well, unused.
_OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_GPT2_SPECIAL = ("<|endoftext|>",)


class JsonTokenizer(BaseTokenizer):
    """A tokenizer of the library `tokenizers`, with what the files beside it add."""

    def __init__(
        self,
        description: dict[str, Any],
        settings: Settings,
        where: str,
        *,
        files: Mapping[str, bytes],
        prefix: str | None = None,
    ):
        """Builds the tokenizer.

        Args:
          description: the object of a tokenizer.json.
          settings: what the files beside it say.
          where: names the place in error messages.
          files: what the description comes from.
          prefix: the token in front of every prompt unless the settings say otherwise; None:
            what the description's post-processor puts there.

        Raises:
          UserError: the description is malformed or of a kind that cannot be decoded token by
            token, or nothing says what ends a text.
        """
        library = _build(description, where)
        added = _added_tokens(description, settings, library)
        if added != description.get("added_tokens"):
            description = {**description, "added_tokens": added}
            library = _build(description, where)
        for token in added:
            if library.token_to_id(token["content"]) != token["id"]:
                raise UserError(
                    f"tokenizer {where}: added token {token['content']!r} cannot have the id "
                    f"{token['id']}; copy all files of the tokenizer from the same model"
                )
        self._description = json.dumps(description)
        self._library = library
        library.encode_special_tokens = True
        self._libraries = {(False, False): library}  # see _encode
        self._decode_token = _token_decoder(description.get("decoder"), where)
        self._added = {token["id"]: token["content"] for token in added}
        self._adds_space = _adds_space(library)
        unknown = description["model"].get("unk_token")
        super().__init__(
            where=where,
            settings=settings,
            vocab_size=1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1),
            own_tokens={} if unknown is None else {"unk_token": unknown},
            files=files,
        )
        self._special_ids |= {token["id"] for token in added if token["special"]}
        self.prefix_ids = self._find_prefix_ids(settings.add_bos, prefix)

    @classmethod
    def from_json(
        cls, files: Mapping[str, bytes], settings: Settings, where: str
    ) -> "JsonTokenizer":
        """From a tokenizer.json. Raises: UserError if it is malformed."""
        description = read_json(files, FILE, where)
        return cls(description, settings, where, files={FILE: files[FILE]})

    @classmethod
    def from_merges(
        cls, files: Mapping[str, bytes], settings: Settings, where: str
    ) -> "JsonTokenizer":
        """Byte-level BPE from vocab.json and merges.txt. Raises: UserError if one is malformed."""
        vocab = read_json(files, VOCAB_FILE, where)
        try:
            lines = files[MERGES_FILE].decode().replace("\r", "").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"tokenizer {where}: {MERGES_FILE} is not UTF-8 text") from error
        is_opt = "</s>" in vocab
        special = _OPT_SPECIAL if is_opt else _GPT2_SPECIAL
        byte_level = {"type": "ByteLevel", "add_prefix_space": settings.add_prefix_space,
                      "trim_offsets": True, "use_regex": True}  # fmt: skip
        description = {
            "version": "1.0",
            "added_tokens": [_token(vocab[t], t) for t in special if t in vocab],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "vocab": vocab,
                "merges": [line for line in lines if line and not line.startswith("#version")],
            },
        }
        kept = {name: files[name] for name in (VOCAB_FILE, MERGES_FILE)}
        # OPT begins every text with </s>.
        return cls(description, settings, where, files=kept, prefix="</s>" if is_opt else None)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._encode(text, continuation=False, special=special)

    def encode_continuation(self, text: str, *, special: bool = False) -> list[int]:
        return self._encode(text, continuation=self._adds_space, special=special)

    def _encode(self, text: str, *, continuation: bool, special: bool) -> list[int]:
        # Each way has a library object of its own, made when it is first needed: changing the
        # settings of one would change what other threads are encoding.
        library = self._libraries.get((continuation, special))
        if library is None:
            description = json.loads(self._description)
            if continuation:
                for step in ("normalizer", "pre_tokenizer"):
                    description[step] = _without_space(description.get(step))
            library = _build(description, self._where)
            library.encode_special_tokens = not special
            self._libraries[continuation, special] = library
        return library.encode(text, add_special_tokens=False).ids

    def _find_prefix_ids(self, add_bos: bool | None, prefix: str | None) -> tuple[int, ...]:
        if add_bos is False:
            return ()
        if add_bos and self._bos_id is not None:
            return (self._bos_id,)
        if prefix is not None:
            return (self._library.token_to_id(prefix),)
        encoding = self._library.encode("a", add_special_tokens=True)
        added = encoding.special_tokens_mask
        return tuple(encoding.ids[: added.index(0)]) if 0 in added else ()

    def _id_of(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._library.id_to_token(token_id)
        return b"" if token is None else self._decode_token(token)  # None: a gap between ids


def _build(description: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library has no class for it
        raise UserError(
            f"tokenizer {where} is malformed ({error}); copy it anew from where it came from"
        ) from error
    library.no_truncation()
    library.no_padding()
    return library


def _token(token_id: int, content: str, *, special: bool = True, **strip: bool) -> dict[str, Any]:
    """An entry of added_tokens."""
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False,
            "rstrip": False, **strip, "normalized": not special, "special": special}  # fmt: skip


def _added_tokens(
    description: dict[str, Any], settings: Settings, library: tokenizers.Tokenizer
) -> list[dict[str, Any]]:
    """The description's added tokens, with those that the settings add or call special."""
    tokens = {token["content"]: token for token in description.get("added_tokens") or ()}
    for token_id, token in sorted(settings.added_tokens.items()):
        entry = _token(
            token_id, token.content, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip
        )
        tokens.setdefault(token.content, entry)
    special = {t.content for t in settings.added_tokens.values() if t.special}
    for content in sorted(special.union(settings.special_tokens.values(), settings.more_special)):
        token_id = library.token_to_id(content)
        if content not in tokens and token_id is not None:
            tokens[content] = _token(token_id, content)
        if content in tokens:
            tokens[content] = {**tokens[content], "special": True}
    # A special token is found as it stands; normalising would make it one with its neighbours.
    return [{**t, "normalized": t["normalized"] and not t["special"]} for t in tokens.values()]


def _adds_space(library: tokenizers.Tokenizer) -> bool:
    """Whether a text is encoded as if a space stood in front of it."""
    text = library.normalizer.normalize_str("a") if library.normalizer else "a"
    if library.pre_tokenizer:
        text = library.pre_tokenizer.pre_tokenize_str(text)[0][0]
    return text != "a"


def _without_space(component: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that puts no space in front of a text; None is none."""
    if component is None or component["type"] == "Prepend":
        return None
    if component["type"] == "ByteLevel":
        return {**component, "add_prefix_space": False}
    if component["type"] == "Metaspace":
        split = component.get("split", True)
        replacement = component["replacement"]
        return {"type": "Metaspace", "replacement": replacement, "prepend_scheme": "never",
                "split": split}  # fmt: skip
    if component["type"] == "Sequence":
        key = "normalizers" if "normalizers" in component else "pretokenizers"
        members = component[key]
        if any(member["type"] == "Metaspace" for member in members):
            # It marks a word by its space, which this one would have thrown away.
            members = [member for member in members if member["type"] != "WhitespaceSplit"]
        kept = [_without_space(member) for member in members]
        return {**component, key: [member for member in kept if member is not None]}
    return component


def _token_decoder(decoder: dict[str, Any] | None, where: str) -> Callable[[str], bytes]:
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
        f"tokenizer {where}: {FILE} has the decoder {', '.join(sorted(kinds))}, which is not "
        "supported; use a model with a byte-level or SentencePiece tokenizer"
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

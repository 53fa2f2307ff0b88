"""Tokenizers from SentencePiece .model files.

Encoding is SentencePiece's. Decoding joins the bytes of the pieces, so that the text of a token
never depends on what comes later. Two conventions of SentencePiece remain visible. A text is
encoded as if a space stood before it (unless the model says otherwise), and `decode` takes that
space off again. And U+2581, with which SentencePiece marks spaces inside, reads back as a space.
"""

import dataclasses
import os
import re
from typing import Any

import sentencepiece

from ssjax.data.tokenizers.base import BaseTokenizer
from ssjax.data.tokenizers.pieces import SPACE, describe_pieces
from ssjax.data.tokenizers.settings import CONFIG, TO_JSON, AddedToken, Settings, read_settings
from ssjax.errors import UserError
from ssjax.files import places

FILE = "tokenizer.model"

# Classes of transformers that take a model as it is; others shift its ids or change the text.
_CLASSES = (None, "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")

# After a serialized model this sets normalizer_spec.add_dummy_prefix and
# remove_extra_whitespaces to false, since protocol buffers merge when one is put after the
# other. SentencePiece has no option for it.
_NOTHING_IN_FRONT = b"\x1a\x04\x18\x00\x20\x00"

# A line of the files in which tiktoken keeps a vocabulary: base64, a space, a rank.
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


class SentencePieceTokenizer(BaseTokenizer):
    """A SentencePiece model, with what the files beside it add.

    A model without a padding piece (Llama's) pads with eos; batches carry lengths, so padding
    is never read. A model without a beginning-of-sequence piece (T5's) begins with eos.
    """

    def __init__(
        self, model_bytes: bytes, settings: Settings | None = None, where: str = "in memory"
    ):
        """Loads a model.

        Args:
          model_bytes: a serialized SentencePiece model.
          settings: what the files beside it say; None if there are none.
          where: names the place in error messages.

        Raises:
          UserError: it is not a SentencePiece model, or nothing says what ends a text.
        """
        settings = settings or read_settings({}, where)
        _check_class(settings.tokenizer_class, where)
        self._processor, self._texts = _load(model_bytes, where)
        self._continuation, _ = _load(model_bytes + _NOTHING_IN_FRONT, where)
        if settings.add_prefix_space is False:
            self._processor = self._continuation
        self._adds_space = self._processor.normalize("a") != self._continuation.normalize("a")
        # Added tokens come after the pieces, or give a piece another text.
        self._added = {
            i: token
            for i, token in settings.added_tokens.items()
            if i >= len(self._texts) or token.content != self._texts[i]
        }
        self._added_ids = {token.content: i for i, token in self._added.items()}
        own = {
            "bos_token": self._processor.bos_id(),
            "eos_token": self._processor.eos_id(),
            "pad_token": self._processor.pad_id(),
            "unk_token": self._processor.unk_id(),
        }
        super().__init__(
            where=where,
            settings=settings,
            vocab_size=max([len(self._texts) - 1, *self._added]) + 1,
            own_tokens={role: self._texts[i] for role, i in own.items() if i >= 0},
            files={FILE: model_bytes},
        )
        self._special_ids |= {i for i in range(len(self._texts)) if self._processor.is_control(i)}
        self._special_ids |= {i for i, token in settings.added_tokens.items() if token.special}
        bos_id = self.eos_id if self.bos_id is None else self.bos_id
        self.prefix_ids = () if settings.add_bos is False else (bos_id,)
        # What encodes the text after a token that was split off.
        self._later = self._processor if settings.space_after_special else self._continuation
        # Not ordinary pieces, of which generation_config.json may say that they end a text.
        named = self._named_ids | {i for i in self._special_ids if self._is_mark(i)}
        special = {
            i: dataclasses.replace(
                settings.added_tokens.get(i) or AddedToken(self._texts[i], True),
                special=True,
            )
            for i in named
        }
        ordinary = {i: token for i, token in self._added.items() if i not in special}
        self._found = ordinary | special
        self._splitters = {False: _Splitter(ordinary), True: _Splitter(self._found)}

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> "SentencePieceTokenizer":
        """A tokenizer from a serialized model. Raises: UserError if it is not one."""
        return cls(model_bytes)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "SentencePieceTokenizer":
        """Reads a SentencePiece .model, and nothing beside it. Raises: UserError naming it."""
        try:
            return cls(places.of(path).read_bytes(), where=str(path))
        except OSError as error:
            raise UserError(f"cannot read tokenizer {path}: {error.strerror}") from error

    def describe(self) -> dict[str, Any] | None:
        return describe_pieces(
            self.files[FILE],
            self._continuation.encode,
            self._found,
            adds_space=self._adds_space,
            space_after_added=self._later is not self._continuation,
            matches_special=self.chat_template is not None,
        )

    def _encode(self, text: str, *, continuation: bool, special: bool) -> list[int]:
        processor = self._continuation if continuation else self._processor
        later = self._continuation if continuation else self._later
        ids = []
        for segment, token_id in self._splitters[special].split(text):
            ids += processor.encode(segment)
            if token_id is not None:
                ids.append(token_id)
            processor = later
        return ids

    def special_text(self, token_id: int | None) -> str | None:
        return self._found[token_id].content if token_id in self._found else None

    def _is_mark(self, token_id: int) -> bool:
        """Whether a special id is one that no text is made of."""
        return token_id in self._added or (
            token_id < len(self._texts)
            and (self._processor.is_control(token_id) or self._processor.is_unknown(token_id))
        )

    def _id_of(self, token: str) -> int | None:
        if token in self._added_ids:
            return self._added_ids[token]
        token_id = self._processor.piece_to_id(token)  # unknown ones get the id of <unk>
        return token_id if self._texts[token_id] == token else None

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].content.encode()
        if token_id >= len(self._texts):  # a gap between added tokens
            return b""
        piece = self._texts[token_id]
        if self._processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace(SPACE, " ").encode()


class _Splitter:
    """Finds added tokens in a text, the longer ones first."""

    def __init__(self, tokens: dict[int, AddedToken]):
        self._ids = {token.content: i for i, token in tokens.items()}
        longest_first = sorted(tokens.values(), key=lambda token: len(token.content), reverse=True)
        patterns = (
            (r"(?<!\w)" if token.single_word else "")
            + (r"\s*" if token.lstrip else "")
            + f"({re.escape(token.content)})"
            + (r"\s*" if token.rstrip else "")
            + (r"(?!\w)" if token.single_word else "")
            for token in longest_first
        )
        self._pattern = re.compile("|".join(patterns)) if tokens else None

    def split(self, text: str):
        """Yields pieces of text, each with the id of the token after it, None at the end."""
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            yield text[end : match.start()], self._ids[match[match.lastindex]]
            end = match.end()
        yield text[end:], None


def _check_class(name: str | None, where: str) -> None:
    if name not in _CLASSES:
        raise UserError(
            f"tokenizer {where}: {CONFIG} beside it has the tokenizer_class {name!r}, whose rules "
            f"are not known here; {TO_JSON}"
        )


def _load(model_bytes: bytes, where: str) -> tuple[sentencepiece.SentencePieceProcessor, list[str]]:
    """A model and its pieces."""
    try:
        # Not the constructor's model_proto: it takes empty bytes for no model given.
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model_bytes)
        return processor, [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    except (RuntimeError, ValueError):  # ValueError: pieces that are not UTF-8
        if _TIKTOKEN_LINE.match(model_bytes):
            problem = f"a tiktoken file, not a SentencePiece model; {TO_JSON}"
        else:
            problem = "not a SentencePiece model; give a SentencePiece .model file"
        raise UserError(f"tokenizer {where}: {problem}") from None

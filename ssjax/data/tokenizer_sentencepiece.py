"""Tokenizers from SentencePiece .model files.

Encoding is SentencePiece's. Decoding joins the bytes of the pieces, so that the text of a token
never depends on what comes later. Two conventions of SentencePiece remain visible. A text is
encoded as if a space stood before it (unless the model says otherwise), and `decode` takes that
space off again. And U+2581, with which SentencePiece marks spaces inside, reads back as a space.
"""

import os
import re
from pathlib import Path

import sentencepiece

from ssjax.data.tokenizer_base import BaseTokenizer
from ssjax.data.tokenizer_settings import AddedToken, Settings, read_settings
from ssjax.errors import UserError

FILE = "tokenizer.model"

_SPACE = "\u2581"

# Behind a serialized model this sets normalizer_spec.add_dummy_prefix and
# remove_extra_whitespaces to false, since protocol buffers merge when one is put behind the
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
        self._processor = _load(model_bytes, where)
        self._continuation = _load(model_bytes + _NOTHING_IN_FRONT, where)
        self._adds_space = self._processor.normalize("a") != self._continuation.normalize("a")
        self._pieces = self._processor.vocab_size()
        # Added tokens lie behind the pieces, or give a piece another text.
        self._added = {
            i: token
            for i, token in settings.added_tokens.items()
            if i >= self._pieces or token.content != self._processor.id_to_piece(i)
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
            vocab_size=max([self._pieces - 1, *self._added]) + 1,
            own_tokens={role: self._processor.id_to_piece(i) for role, i in own.items() if i >= 0},
            files={FILE: model_bytes},
        )
        self._special_ids |= {i for i in range(self._pieces) if self._processor.is_control(i)}
        self._special_ids |= {i for i, token in settings.added_tokens.items() if token.special}
        bos_id = self.eos_id if self._bos_id is None else self._bos_id
        self.prefix_ids = () if settings.add_bos is False else (bos_id,)
        # What encodes the text behind a token that was split off.
        self._later = self._processor if settings.space_after_special else self._continuation
        special = {
            i: settings.added_tokens.get(i) or AddedToken(self._processor.id_to_piece(i), True)
            for i in self._special_ids
            if i < self._pieces or i in settings.added_tokens
        }
        ordinary = {i: token for i, token in self._added.items() if i not in special}
        self._splitters = {False: _Splitter(ordinary), True: _Splitter(ordinary | special)}

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> "SentencePieceTokenizer":
        """A tokenizer from a serialized model. Raises: UserError if it is not one."""
        return cls(model_bytes)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "SentencePieceTokenizer":
        """Reads a SentencePiece .model, and nothing beside it. Raises: UserError naming it."""
        try:
            return cls(Path(path).read_bytes(), where=str(path))
        except OSError as error:
            raise UserError(f"cannot read tokenizer {path}: {error.strerror}") from error

    @property
    def bos_id(self) -> int:
        """For callers that do not know prefix_ids yet."""
        return self.eos_id if self._bos_id is None else self._bos_id

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._encode(text, special, self._processor, self._later)

    def encode_continuation(self, text: str, *, special: bool = False) -> list[int]:
        return self._encode(text, special, self._continuation, self._continuation)

    def _encode(self, text, special, processor, later) -> list[int]:
        ids = []
        for segment, token_id in self._splitters[special].split(text):
            ids += processor.encode(segment)
            if token_id is not None:
                ids.append(token_id)
            processor = later
        return ids

    def _id_of(self, token: str) -> int | None:
        if token in self._added_ids:
            return self._added_ids[token]
        token_id = self._processor.piece_to_id(token)  # unknown ones get the id of <unk>
        return token_id if self._processor.id_to_piece(token_id) == token else None

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].content.encode()
        if token_id >= self._pieces:  # a gap between added tokens
            return b""
        piece = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace(_SPACE, " ").encode()


class _Splitter:
    """Finds added tokens in a text, the longer ones first."""

    def __init__(self, tokens: dict[int, AddedToken]):
        self._ids = {token.content: i for i, token in tokens.items()}
        longest_first = sorted(tokens.values(), key=lambda token: len(token.content), reverse=True)
        patterns = (
            (r"\s*" if token.lstrip else "")
            + f"({re.escape(token.content)})"
            + (r"\s*" if token.rstrip else "")
            for token in longest_first
        )
        self._pattern = re.compile("|".join(patterns)) if tokens else None

    def split(self, text: str):
        """Yields pieces of text, each with the id of the token behind it, None at the end."""
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            yield text[end : match.start()], self._ids[match[match.lastindex]]
            end = match.end()
        yield text[end:], None


def _load(model_bytes: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    try:
        # Not the constructor's model_proto: it takes empty bytes for no model given.
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model_bytes)
    except RuntimeError as error:
        if _TIKTOKEN_LINE.match(model_bytes):
            raise UserError(
                f"tokenizer {where}: a tiktoken file, not a SentencePiece model; give the "
                "directory that holds the same tokenizer as tokenizer.json"
            ) from error
        raise UserError(
            f"tokenizer {where}: not a SentencePiece model; give a SentencePiece .model file"
        ) from error
    return processor

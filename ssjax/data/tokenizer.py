"""SentencePiece tokenizers: loading one, and training one in memory.

Texts are kept as they are: no normalisation, no trimmed spaces, and bytes for characters
outside the vocabulary. Two conventions of SentencePiece remain visible. A text is encoded as
if a space stood before it, and decoding takes that space off again, so the ids of a prompt
and of its answer put together spell the two with one space between. And U+2581, with which
SentencePiece marks spaces inside, reads back as a space.
"""

import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from ssjax.errors import UserError
from ssjax.files import write_atomic

# Log level of SentencePiece that leaves errors alone; those arrive as exceptions anyway.
_QUIET = 2


class SentencePieceTokenizer:
    """Text to ids and back.

    bos_id, eos_id and pad_id are always ids of the model. A file without a padding piece
    (Llama's) pads with eos; batches carry lengths, so padding is never read. A file without
    a beginning-of-sequence piece (T5's) begins with eos, as OPT does.
    """

    def __init__(self, model_bytes: bytes):
        """model_bytes: a serialized SentencePiece model. Raises: UserError for anything else."""
        try:
            # Not the constructor's model_proto: it takes empty bytes for no model given.
            self._processor = sentencepiece.SentencePieceProcessor()
            self._processor.LoadFromSerializedProto(model_bytes)
        except RuntimeError as error:
            raise UserError("not a SentencePiece model") from error
        if self._processor.eos_id() < 0:
            raise UserError("the SentencePiece model has no end-of-sequence piece (</s>)")
        self._model_bytes = model_bytes
        self._unprinted = {self.bos_id, self.eos_id, self.pad_id}

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> "SentencePieceTokenizer":
        """The inverse of `model_bytes`. Raises: UserError if it is not a SentencePiece model."""
        return cls(model_bytes)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "SentencePieceTokenizer":
        """Reads a SentencePiece .model. Raises: UserError naming the file."""
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"cannot read tokenizer {path}: {error.strerror}") from error
        except UserError as error:
            raise UserError(
                f"tokenizer {path}: {error}; give a SentencePiece .model file"
            ) from error

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @property
    def bos_id(self) -> int:
        bos_id = self._processor.bos_id()
        return bos_id if bos_id >= 0 else self.eos_id

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def pad_id(self) -> int:
        pad_id = self._processor.pad_id()
        return pad_id if pad_id >= 0 else self.eos_id

    @property
    def model_bytes(self) -> bytes:
        """The serialized model: equal bytes, equal tokenizer."""
        return self._model_bytes

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos. Text that spells a special piece stays text."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bos, eos, pad and ids beyond the vocabulary (a padded table) are skipped.

        Bytes that are not UTF-8, as in an answer cut inside a character, become U+FFFD.
        """
        size = self.vocab_size
        return self._processor.decode(
            [int(i) for i in ids if int(i) not in self._unprinted and 0 <= int(i) < size]
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the .model file at once: a reader sees the old file or the whole new one."""
        write_atomic(path, self._model_bytes)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, symbols: Sequence[str]
) -> SentencePieceTokenizer:
    """Trains a byte-pair encoding; the same texts in the same order give the same bytes.

    Args:
      texts: what it should encode well. All are used: sample first if there are many.
      vocab_size: pieces, with 4 special ones (pad 0, unk 1, bos 2, eos 3), the newline, the
        symbols and 256 bytes among them.
      symbols: strings that stay one piece wherever they occur.

    Raises:
      UserError: vocab_size does not suit the texts; the message gives the bound.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise UserError("there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            # Rarer characters are spelled with bytes and leave their places to words.
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n", *symbols],
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            # SentencePiece drops longer texts without a word.
            max_sentence_length=1 + max(len(text.encode()) for text in texts),
            num_threads=1,
            minloglevel=_QUIET,
        )
    except RuntimeError as error:
        raise UserError(_vocabulary_message(vocab_size, str(error))) from error
    return SentencePieceTokenizer(model.getvalue())


def _vocabulary_message(vocab_size: int, error: str) -> str:
    """Says the bound that SentencePiece found, in terms of the setting."""
    if too_high := re.search(r"Vocabulary size too high .*<= (\d+)", error):
        return (
            f"a tokenizer of {vocab_size} pieces is too large for these texts: "
            f"set --config.data.tokenizer_vocab_size to {too_high[1]} or less"
        )
    if too_low := re.search(r"smaller than required_chars. \d+ vs (\d+)", error):
        return (
            f"a tokenizer of {vocab_size} pieces cannot hold the characters of these texts: "
            f"set --config.data.tokenizer_vocab_size to {too_low[1]} or more"
        )
    return f"SentencePiece could not train a tokenizer of {vocab_size} pieces: {error}"

"""Tokenizers of decoder language models: text to ids and back.

    tokenizer.json              Hugging Face's, read with the library `tokenizers`
    tokenizer.model             SentencePiece
    vocab.json and merges.txt   byte-level BPE, as GPT-2 and OPT have it
    NAME.gguf                   a GGUF file, whose metadata amount to one of the first two

`open_tokenizer` reads any of them, with the small files beside it (see `settings`);
`train_tokenizer` makes one from texts. Texts are kept as they are, as far as the tokenizer's own
normalisation allows.
"""

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece

from ssjax.data.tokenizers import gguf, merges, tokenizer_json
from ssjax.data.tokenizers import settings as settings_lib
from ssjax.data.tokenizers.chat_template import Messages
from ssjax.data.tokenizers.sentencepiece import FILE as SENTENCEPIECE_FILE
from ssjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from ssjax.data.tokenizers.tokenizer_json import JsonTokenizer
from ssjax.errors import UserError
from ssjax.files import fetching, places
from ssjax.files.gguf import is_gguf, read_header
from ssjax.files.reading import read_bytes

__all__ = [
    "SentencePieceTokenizer",
    "Tokenizer",
    "open_tokenizer",
    "same_tokens",
    "tokenizer_from_files",
    "train_tokenizer",
]

_TOKENIZER_FILES = (
    tokenizer_json.FILE,
    SENTENCEPIECE_FILE,
    merges.VOCAB_FILE,
    merges.MERGES_FILE,
)

# Log level of SentencePiece that leaves errors alone; those arrive as exceptions anyway.
_QUIET = 2


class Tokenizer(Protocol):
    """Text to ids and back.

    Every id is below vocab_size. A prompt is `[*prefix_ids, *encode(text)]`, a training target
    that follows it `[*encode_continuation(text), eos_id]`, a chat `encode_chat(messages)`.

    Attributes:
      vocab_size: number of ids, added tokens included.
      prefix_ids: what stands in front of every prompt: (bos,) for Llama, (2,) "</s>" for OPT,
        () for GPT-2.
      eos_id: ends a training target.
      eos_ids: every id that ends a completion, eos_id first.
      pad_id: fills rows up; eos_id if the tokenizer has none of its own.
      bos_id: what the files call the beginning of a text, in front of a prompt or not; or None.
      special_tokens: special tokens by role ("eos_token"), those that the vocabulary has.
      files: names and contents of the files with which `open_tokenizer` opens it again.
      chat_template: Jinja text, None if the tokenizer has none.
    """

    vocab_size: int
    prefix_ids: tuple[int, ...]
    eos_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    bos_id: int | None
    special_tokens: dict[str, str]
    files: dict[str, bytes]
    chat_template: str | None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of the start of a text, without prefix_ids and eos.

        Args:
          text: any text.
          special: strings that spell special tokens, such as "</s>", become those tokens;
            otherwise they stay text.
        """
        ...

    def encode_continuation(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text as it stands after other text: no space is put in front of it."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `encode` made the ids of.

        Special tokens and ids beyond the vocabulary (of a padded table) are skipped; bytes that
        are not UTF-8, as in an answer cut inside a character, become U+FFFD.
        """
        ...

    def decode_continuation(self, ids: Iterable[int]) -> str:
        """The same for ids of `encode_continuation`: a space in front is kept."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What one id adds to a text: UTF-8 or a part of it; nothing where decoding skips it."""
        ...

    def special_text(self, token_id: int | None) -> str | None:
        """How a token is spelled that is looked for in a text before others; None: another one."""
        ...

    def describe(self) -> dict[str, Any] | None:
        """The object of a tokenizer.json that gives the same ids; None: there is none."""
        ...

    def render_chat(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """Text of a chat by the tokenizer's template; for reading, `encode_chat` gives the ids.

        Raises:
          UserError: there is no template, or it rejects the messages.
        """
        ...

    def encode_chat(self, messages: Messages, *, add_generation_prompt: bool) -> list[int]:
        """Ids of a chat, with prefix_ids in front exactly once.

        Text of a message that spells a special token becomes that token, as everywhere.

        Raises:
          UserError: as `render_chat`.
        """
        ...

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `files`; each is either whole or absent."""
        ...


def open_tokenizer(directory: str | os.PathLike) -> Tokenizer:
    """Opens the tokenizer of a Hugging Face model directory or a GGUF file, or one of `save`.

    Raises:
      UserError: there is none, or a file of it is malformed.
    """
    path = places.of(directory)
    if is_gguf(path):
        header = read_header(fetching.file_on_disk(path))
        return tokenizer_from_files(gguf.tokenizer_files(header), str(path))
    if not places.is_dir(path):
        raise UserError(f"no tokenizer directory {path}; give one that exists")
    names = (*_TOKENIZER_FILES, *settings_lib.FILES)
    files = {name: read_bytes(path / name) for name in names if places.is_file(path / name)}
    return tokenizer_from_files(files, str(path))


def tokenizer_from_files(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """The same from memory.

    Args:
      files: names and contents; names that mean nothing here are ignored.
      where: names the place in error messages.

    Raises:
      UserError: there is no tokenizer among them, or a file is malformed.
    """
    settings = settings_lib.read_settings(files, where)
    if tokenizer_json.FILE in files:
        return JsonTokenizer.from_json(files, settings, where)
    if SENTENCEPIECE_FILE in files:
        model_bytes = files[SENTENCEPIECE_FILE]
        place = f"{where}/{SENTENCEPIECE_FILE}"
        return SentencePieceTokenizer(model_bytes, settings, place)
    if {merges.VOCAB_FILE, merges.MERGES_FILE} <= files.keys():
        return JsonTokenizer.from_merges(files, settings, where)
    raise UserError(
        f"no tokenizer in {where}: it needs tokenizer.json, or tokenizer.model (SentencePiece), "
        "or vocab.json and merges.txt"
    )


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether every id means the same in both, whatever files they were read from."""
    return one.files == other.files or (
        one.vocab_size == other.vocab_size
        and all(
            one.token_bytes(i) == other.token_bytes(i)
            and one.special_text(i) == other.special_text(i)
            for i in range(one.vocab_size)
        )
    )


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
            # SentencePiece drops longer texts without a word, and takes no limit below 10.
            max_sentence_length=max(10, 1 + max(len(text.encode()) for text in texts)),
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

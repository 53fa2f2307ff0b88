"""What all tokenizers have in common once their files are read."""

import abc
import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ssjax.data.tokenizers.chat_template import ChatTemplate, Messages
from ssjax.data.tokenizers.settings import HINT, Settings, files_to_keep
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.files.writing import write_atomic

# More ids than any model has embeddings for; a damaged file can name any.
_MAX_IDS = 2**24

# What ends a text where no file says so, in this order.
_EOS_NAMES = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "<|im_end|>")


class BaseTokenizer(abc.ABC):
    """Special ids, decoding, chats and files; a subclass knows its vocabulary and encodes.

    See `ssjax.data.tokenizers.tokenizer.Tokenizer` for the meaning of what is public here.
    """

    prefix_ids: tuple[int, ...]
    _adds_space: bool  # `encode` puts a space in front of the text

    def __init__(
        self,
        *,
        where: str,
        settings: Settings,
        vocab_size: int,
        own_tokens: Mapping[str, str],
        files: Mapping[str, bytes],
        class_to_keep: str | None = None,
    ):
        """Finds the special ids.

        Args:
          where: names the place in error messages.
          settings: what the files beside the vocabulary say.
          vocab_size: number of ids.
          own_tokens: special tokens by role that the vocabulary names itself; the settings
            have precedence.
          files: what holds the vocabulary.
          class_to_keep: see `settings.files_to_keep`.

        Raises:
          UserError: nothing says which token ends a text.
        """
        if vocab_size > _MAX_IDS:
            raise UserError(f"tokenizer {where} has a token with the id {vocab_size - 1}; {HINT}")
        self._where = where
        self.vocab_size = vocab_size
        named = {**own_tokens, **settings.special_tokens}
        self.special_tokens = {role: t for role, t in named.items() if self._id_of(t) is not None}
        self.eos_ids = self._find_eos_ids(settings)
        self.eos_id = self.eos_ids[0]
        self.pad_id = self._existing(self._id_of_role("pad_token"), self.eos_id)
        self.bos_id = self._existing(self._id_of_role("bos_token"), settings.bos_id)
        self.chat_template = settings.chat_template
        self.files = {**files, **files_to_keep(settings, self.eos_ids, class_to_keep, where)}
        self._named_ids = {self._id_of(t) for t in (*named.values(), *settings.more_special)}
        self._named_ids -= {None}
        self._special_ids = self._named_ids | {*self.eos_ids, self.pad_id}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._ids_of_text(text, continuation=False, special=special)

    def encode_continuation(self, text: str, *, special: bool = False) -> list[int]:
        return self._ids_of_text(text, continuation=True, special=special)

    def _ids_of_text(self, text: str, *, continuation: bool, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"cannot encode the text {text[:40]!r}: it holds half of a surrogate pair, "
                "which is no character; take it out"
            ) from None
        return self._encode(text, continuation=continuation, special=special)

    @abc.abstractmethod
    def _encode(self, text: str, *, continuation: bool, special: bool) -> list[int]:
        """As `encode`; continuation: as `encode_continuation`."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any] | None:
        """The object of a tokenizer.json that gives the same ids; None: there is none."""

    @abc.abstractmethod
    def _id_of(self, token: str) -> int | None:
        """Id of a token, by its text; None if there is no such token."""

    @abc.abstractmethod
    def special_text(self, token_id: int | None) -> str | None: ...

    @abc.abstractmethod
    def _bytes_of(self, token_id: int) -> bytes:
        """UTF-8, or a part of it, that an id of the vocabulary stands for."""

    def token_bytes(self, token_id: int) -> bytes:
        token_id = int(token_id)
        if token_id in self._special_ids or not 0 <= token_id < self.vocab_size:
            return b""
        return self._bytes_of(token_id)

    def decode(self, ids: Iterable[int]) -> str:
        text = self.decode_continuation(ids)
        return text.removeprefix(" ") if self._adds_space else text

    def decode_continuation(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def render_chat(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        if self._template is None:
            raise UserError(
                f"tokenizer {self._where} has no chat template; use a model that was trained on "
                "chats, or put its template beside the tokenizer as chat_template.jinja"
            )
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode_chat(self, messages: Messages, *, add_generation_prompt: bool) -> list[int]:
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        ids = self.encode(text, special=True)
        # Some templates write the prefix themselves, others leave it to whoever encodes.
        if tuple(ids[: len(self.prefix_ids)]) == self.prefix_ids:
            return ids
        return [*self.prefix_ids, *ids]

    def save(self, directory: str | os.PathLike) -> None:
        for name, content in self.files.items():
            write_atomic(places.of(directory) / name, content)

    @functools.cached_property
    def _template(self) -> ChatTemplate | None:
        if self.chat_template is None:
            return None
        return ChatTemplate(self.chat_template, self.special_tokens, f"tokenizer {self._where}")

    def _id_of_role(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self._id_of(token)

    def _existing(self, *ids: int | None) -> int | None:
        """The first id that the vocabulary has."""
        return next((i for i in ids if i is not None and 0 <= i < self.vocab_size), None)

    def _find_eos_ids(self, settings: Settings) -> tuple[int, ...]:
        """Every id that ends a completion; the one that ends a training target comes first."""
        own = self._id_of_role("eos_token")
        ids = [*settings.generation_eos_ids, own, *settings.model_eos_ids]
        if "eos_token" in settings.special_tokens:
            if own is None:
                raise UserError(
                    f"tokenizer {self._where} has no token "
                    f"{settings.special_tokens['eos_token']!r}, which tokenizer_config.json says "
                    "ends a text; copy all files of the tokenizer from the same model"
                )
            ids = [own, *ids]
        found = [i for i in ids if self._existing(i) is not None]
        if not found:
            found = [i for i in map(self._id_of, _EOS_NAMES) if i is not None][:1]
        if not found:
            raise UserError(
                f"tokenizer {self._where} does not say which token ends a text; put "
                '{"eos_token": "..."} into tokenizer_config.json beside it'
            )
        return tuple(dict.fromkeys(found))

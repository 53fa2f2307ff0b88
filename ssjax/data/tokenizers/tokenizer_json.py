"""Tokenizers that the library `tokenizers` runs: tokenizer.json, or vocab.json and merges.txt.

Either becomes a description, the object of a tokenizer.json. What the library has no option for
is an edit of that description: special tokens that only other files name, and encoding without a
space in front. Decoding joins the bytes of the tokens, so that the text of a token never depends
on what comes later.
"""

import collections
import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tokenizers

from ssjax.data.tokenizers.base import BaseTokenizer
from ssjax.data.tokenizers.merges import describe_merges
from ssjax.data.tokenizers.pieces import AT_START
from ssjax.data.tokenizers.settings import CONFIG, HINT, AddedToken, Settings, read_fields
from ssjax.data.tokenizers.token_bytes import token_decoder
from ssjax.errors import UserError

FILE = "tokenizer.json"

_EMPTY = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}

_STDERR = threading.Lock()  # it belongs to the process


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
        class_to_keep: str | None = None,
    ):
        """Builds the tokenizer.

        Args:
          description: the object of a tokenizer.json.
          settings: what the files beside it say.
          where: names the place in error messages.
          files: what the description comes from.
          prefix: the token in front of every prompt unless the settings say otherwise; None:
            what the description's post-processor puts there.
          class_to_keep: see `settings.files_to_keep`.

        Raises:
          UserError: the description is malformed or of a kind that cannot be decoded token by
            token, or nothing says what ends a text.
        """
        library = _build(description, where, files)
        _check_prefix_space(library, settings, where)
        _check_ids(description["model"].get("vocab"), where)
        added = _added_tokens(description, settings, library, where)
        changes = {"added_tokens": added, "truncation": None, "padding": None}
        if description["model"].get("dropout"):  # else every encoding is another one
            changes["model"] = {**description["model"], "dropout": None}
        changes |= {part: _state(library, part) for part in ("normalizer", "pre_tokenizer")}
        if any(description.get(key) != value for key, value in changes.items()):
            description = {**description, **changes}
            library = _build(description, where, files)
        _check_added(added, library, where)
        self._description = json.dumps(description)
        # By a table of characters, which the library does not check when it is built.
        self._may_panic = "Precompiled" in json.dumps(description.get("normalizer"))
        self._library = library
        library.encode_special_tokens = True
        self._libraries = {(False, False): library}  # see _encode
        self._decode_token = token_decoder(_state(library, "decoder"), where)
        self._added = {token["id"]: token["content"] for token in added}
        with _one_line(f"{where}: normalizer or pre_tokenizer"):
            self._adds_space = _adds_space(library)
        unknown = getattr(library.model, "unk_token", None)
        super().__init__(
            where=where,
            settings=settings,
            vocab_size=1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1),
            own_tokens={} if unknown is None else {"unk_token": unknown},
            files=files,
            class_to_keep=class_to_keep,
        )
        self._special_ids |= {token["id"] for token in added if token["special"]}
        self.prefix_ids = self._find_prefix_ids(settings.add_bos, prefix)

    @classmethod
    def from_json(
        cls, files: Mapping[str, bytes], settings: Settings, where: str
    ) -> "JsonTokenizer":
        """From a tokenizer.json. Raises: UserError if it is malformed."""
        description = read_fields(files, FILE, where).values
        return cls(description, settings, where, files={FILE: files[FILE]})

    @classmethod
    def from_merges(
        cls, files: Mapping[str, bytes], settings: Settings, where: str
    ) -> "JsonTokenizer":
        """Byte-level BPE from vocab.json and merges.txt.

        Raises:
          UserError: one is malformed, or nothing says how the tokenizer cuts a text.
        """
        merges = describe_merges(files, settings, where)
        return cls(
            merges.description,
            settings,
            where,
            files=merges.files,
            prefix=merges.prefix,
            class_to_keep=merges.class_to_keep,
        )

    def describe(self) -> dict[str, Any] | None:
        return json.loads(self._description)

    def _encode(self, text: str, *, continuation: bool, special: bool) -> list[int]:
        continuation = continuation and self._adds_space
        # Each way has a library object of its own, made when it is first needed: changing the
        # settings of one would change what other threads are encoding.
        library = self._libraries.get((continuation, special))
        if library is None:
            description = json.loads(self._description)
            if continuation:
                for step in ("normalizer", "pre_tokenizer"):
                    description[step] = _without_space(description.get(step))
            library = _build(description, self._where, self.files)
            library.encode_special_tokens = not special
            self._libraries[continuation, special] = library
        return self._run(library, text, prefix=False).ids

    def _run(self, library: tokenizers.Tokenizer, text: str, *, prefix: bool):
        where = f"{self._where}: post_processor of {FILE}" if prefix else self._where
        with _one_line(where, may_panic=prefix or self._may_panic):
            return library.encode(text, add_special_tokens=prefix)

    def _find_prefix_ids(self, add_bos: bool | None, prefix: str | None) -> tuple[int, ...]:
        if add_bos is False:
            return ()
        if add_bos and self.bos_id is not None:
            return (self.bos_id,)
        if prefix is not None:
            return (self._library.token_to_id(prefix),)
        encoding = self._run(self._library, "a", prefix=True)
        added = encoding.special_tokens_mask
        return tuple(encoding.ids[: added.index(0)]) if 0 in added else ()

    def special_text(self, token_id: int | None) -> str | None:
        return self._added.get(token_id)

    def _id_of(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._library.id_to_token(token_id)
        return b"" if token is None else self._decode_token(token)  # None: a gap between ids


@contextlib.contextmanager
def _one_line(where: str, *, may_panic: bool = True) -> Iterator[None]:
    """What the library cannot do, as one line.

    may_panic: whether stderr is watched for the stack of a panic, which is taken out.
    """
    try:
        with _without_stacks() if may_panic else contextlib.nullcontext():
            yield
    except UserError:
        raise
    except BaseException as error:
        # Neither its errors nor the panics of Rust have a class of their own to catch.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"tokenizer {where} malformed ({reason}); {HINT}") from None


@contextlib.contextmanager
def _without_stacks() -> Iterator[None]:
    """Rust prints the stack of a panic before anyone can catch it."""
    with _STDERR, _memory() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            printed = caught.read()
            if b"panicked at" not in printed:
                os.write(2, printed)


def _memory():
    """A file for what is printed; nothing is kept where none can be written."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


def _build(description: dict[str, Any], where: str, files: Iterable[str]) -> tokenizers.Tokenizer:
    """The library's object.

    Args:
      description: of the tokenizer.
      where: names the place in error messages.
      files: names of those that it comes from.

    Raises:
      UserError: names the part that the library cannot read.
    """
    try:
        with _one_line(f"{where}: {' and '.join(files)}"):
            return tokenizers.Tokenizer.from_str(json.dumps(description))
    except UserError:
        for part in description.keys() - {"model"}:
            with _one_line(f"{where}: {part} of {FILE}"):
                tokenizers.Tokenizer.from_str(json.dumps(_EMPTY | {part: description[part]}))
        raise


def _state(library: tokenizers.Tokenizer, part: str) -> dict[str, Any] | None:
    """A part of the description as the library writes it, with all its keys."""
    component = getattr(library, part)
    return None if component is None else json.loads(component.__getstate__())


def _added_tokens(
    description: dict[str, Any], settings: Settings, library: tokenizers.Tokenizer, where: str
) -> list[dict[str, Any]]:
    """The description's added tokens, with those that the settings add or call special."""
    declared = {token["content"]: token["id"] for token in description.get("added_tokens") or ()}
    known = {token.content: token for token in library.get_added_tokens_decoder().values()}
    tokens = {
        content: {"id": token_id, **_flags(known[content])}
        for content, token_id in declared.items()
        if content in known
    }
    for token_id, token in sorted(settings.added_tokens.items()):
        if declared.get(token.content, token_id) != token_id:
            raise UserError(
                f"tokenizer {where}: added token {token.content!r} has the id "
                f"{declared[token.content]} in {FILE} and {token_id} beside it; copy all files of "
                "the tokenizer from the same model"
            )
        entry = {"id": token_id, **_flags(token)}
        tokens.setdefault(token.content, entry)
    special = {t.content for t in settings.added_tokens.values() if t.special}
    for content in sorted(special.union(settings.special_tokens.values(), settings.more_special)):
        token_id = library.token_to_id(content)
        if content not in tokens and token_id is not None:
            tokens[content] = {"id": token_id, **_flags(AddedToken(content, special=True))}
        if content in tokens:
            tokens[content] = {**tokens[content], "special": True}
    for content, token in tokens.items():
        # A special token is found as it stands; most ways of normalising would put a space in
        # front of it.
        with _one_line(f"{where}: normalizer", may_panic=library.normalizer is not None):
            changed = library.normalizer and library.normalizer.normalize_str(content) != content
        token["normalized"] &= not (token["special"] and changed)
    return list(tokens.values())


def _check_added(
    added: Iterable[Mapping[str, Any]], library: tokenizers.Tokenizer, where: str
) -> None:
    for token in added:
        if library.token_to_id(token["content"]) != token["id"]:
            raise UserError(
                f"tokenizer {where}: added token {token['content']!r} cannot have the id "
                f"{token['id']}; copy all files of the tokenizer from the same model"
            )


def _flags(token: AddedToken | tokenizers.AddedToken) -> dict[str, Any]:
    """An entry of added_tokens, without its id."""
    normalized = not token.special if token.normalized is None else token.normalized
    return {
        "content": token.content,
        "single_word": token.single_word,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": normalized,
        "special": token.special,
    }


def _check_ids(vocab: Any, where: str) -> None:
    """Two tokens with one id: the library would decode it to either."""
    if isinstance(vocab, dict) and len(set(vocab.values())) < len(vocab):
        ids = collections.Counter(vocab.values())
        twice = next(token for token, token_id in vocab.items() if ids[token_id] > 1)
        raise UserError(
            f"tokenizer {where}: token {twice!r} has the id {vocab[twice]} of another one; {HINT}"
        )


def _check_prefix_space(library: tokenizers.Tokenizer, settings: Settings, where: str) -> None:
    """Two files may say in different ways whether a text begins with a space."""
    pre_tokenizer = _state(library, "pre_tokenizer") or {}
    adds = pre_tokenizer.get("add_prefix_space")  # of ByteLevel
    if adds is not None and settings.add_prefix_space not in (None, adds):
        raise UserError(
            f"tokenizer {where}: add_prefix_space is {json.dumps(adds)} in {FILE}, but "
            f"{json.dumps(settings.add_prefix_space)} in {CONFIG}; write the right one into both"
        )


def _adds_space(library: tokenizers.Tokenizer) -> bool:
    """Whether a text is encoded as if a space stood in front of it."""
    text = library.normalizer.normalize_str("a") if library.normalizer else "a"
    if library.pre_tokenizer:
        text = "".join(piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(text))
    return text.endswith("a") and text != "a"


def _without_space(component: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that puts no space in front of a text; None is none."""
    if component is None or component["type"] == "Prepend":
        return None
    if component["type"] == "Replace" and component["pattern"].get("Regex", "").startswith(
        AT_START
    ):
        return None
    if component["type"] == "ByteLevel":
        return {**component, "add_prefix_space": False}
    if component["type"] == "Metaspace":
        split = component.get("split", True)
        replacement = component["replacement"]
        return {
            "type": "Metaspace",
            "replacement": replacement,
            "prepend_scheme": "never",
            "split": split,
        }
    if component["type"] == "Sequence":
        key = "normalizers" if "normalizers" in component else "pretokenizers"
        members = component[key]
        if any(member["type"] == "Metaspace" for member in members):
            # It marks a word by its space, which this one would have thrown away.
            members = [member for member in members if member["type"] != "WhitespaceSplit"]
        kept = [_without_space(member) for member in members]
        return {**component, key: [member for member in kept if member is not None]}
    return component

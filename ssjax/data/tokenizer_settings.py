"""What the small files beside a tokenizer say: special tokens, ends of text, chat template.

They are those of Hugging Face model directories. None of them has to be there.

    tokenizer_config.json     special tokens, whether bos is added, added tokens, chat template
    special_tokens_map.json   special tokens, where tokenizer_config.json does not have them
    added_tokens.json         ids of added tokens, in older directories
    chat_template.jinja       the chat template, in newer directories
    generation_config.json    ids that end a completion
    config.json               the model's: bos and eos ids
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssjax.errors import UserError

_CONFIG, _TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
_ADDED, _TEMPLATE = "added_tokens.json", "chat_template.jinja"
_GENERATION, _MODEL = "generation_config.json", "config.json"
FILES = (_CONFIG, _TOKENS_MAP, _ADDED, _TEMPLATE, _GENERATION, _MODEL)

_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the text before anything else."""

    content: str
    special: bool  # not text: left out when decoding, and encoded only on request
    lstrip: bool = False  # takes the white space in front of it along
    rstrip: bool = False


@dataclass(frozen=True)
class Settings:
    """The small files, read. Token ids are as they stand there, unchecked."""

    special_tokens: dict[str, str]  # "bos_token" -> "<s>"
    more_special: frozenset[str]  # special tokens without a role
    added_tokens: dict[int, AddedToken]
    add_bos: bool | None  # whether a prompt begins with bos; None: not said
    add_prefix_space: bool
    space_after_special: bool  # a text behind a special token begins like the first one
    chat_template: str | None
    bos_id: int | None
    generation_eos_ids: tuple[int, ...]
    model_eos_ids: tuple[int, ...]
    files: dict[str, bytes]  # those that were there, without config.json


def read_settings(files: Mapping[str, bytes], where: str) -> Settings:
    """Reads what is there of `FILES`.

    Raises:
      UserError: a file that is not what its name says.
    """
    config = read_json(files, _CONFIG, where)
    tokens_map = read_json(files, _TOKENS_MAP, where)
    generation = read_json(files, _GENERATION, where)
    model = read_json(files, _MODEL, where)
    if not {"architectures", "model_type"} & model.keys():
        model = {}  # a run directory has a config.json of its own
    named = {role: _content(tokens_map.get(role), where) for role in _ROLES}
    named |= {role: _content(config[role], where) for role in _ROLES if role in config}
    bos_ids = _ids(generation.get("bos_token_id")) or _ids(model.get("bos_token_id"))
    return Settings(
        special_tokens={role: token for role, token in named.items() if token is not None},
        more_special=_more_special(tokens_map, where) | _more_special(config, where),
        added_tokens=_added_tokens(config, read_json(files, _ADDED, where), where),
        add_bos=config.get("add_bos_token"),
        add_prefix_space=bool(config.get("add_prefix_space")),
        # Files from before the key was introduced mean what it calls legacy.
        space_after_special=bool(config) and config.get("legacy") is not False,
        chat_template=_chat_template(files, config, where),
        bos_id=bos_ids[0] if bos_ids else None,
        generation_eos_ids=_ids(generation.get("eos_token_id")),
        model_eos_ids=_ids(model.get("eos_token_id")),
        files={name: files[name] for name in FILES if name in files and name != _MODEL},
    )


def files_to_keep(settings: Settings, eos_ids: tuple[int, ...], where: str) -> dict[str, bytes]:
    """The small files with which a tokenizer opens as the same one again.

    config.json is not among them, since a run directory has another one: what it alone says
    moves into generation_config.json.
    """
    values = read_json(settings.files, _GENERATION, where)
    known = dict(values)
    if not set(settings.model_eos_ids) <= set(settings.generation_eos_ids):
        values["eos_token_id"] = list(eos_ids)
    if settings.bos_id is not None:
        values["bos_token_id"] = settings.bos_id
    if values == known:
        return settings.files
    return settings.files | {_GENERATION: json.dumps(values, indent=2).encode()}


def read_json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """A file with one JSON object; {} if it is not there.

    Raises:
      UserError: it is something else.
    """
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except ValueError as error:  # of the syntax or of the encoding
        raise UserError(
            f"tokenizer {where}: {name} is not valid JSON ({error}); copy it anew from where it "
            "came from"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"tokenizer {where}: {name} holds no JSON object; copy it anew from where it came from"
        )
    return value


def _content(token: Any, where: str) -> str | None:
    """A special token, given as its text or as a dict that holds it."""
    if token is None:
        return None
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise UserError(
            f"tokenizer {where}: {_CONFIG} or {_TOKENS_MAP} names {token!r} as a token; "
            "copy it anew from where it came from"
        )
    return text or None


def _more_special(config: dict[str, Any], where: str) -> frozenset[str]:
    tokens: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = config.get(key) or ()
        tokens += values.values() if isinstance(values, dict) else values
    return frozenset(_content(token, where) or "" for token in tokens) - {""}


def _added_tokens(
    config: dict[str, Any], older: dict[str, Any], where: str
) -> dict[int, AddedToken]:
    try:
        tokens = {int(i): AddedToken(text, special=False) for text, i in older.items()}
        for token_id, token in (config.get("added_tokens_decoder") or {}).items():
            tokens[int(token_id)] = AddedToken(
                token["content"],
                special=bool(token.get("special")),
                lstrip=bool(token.get("lstrip")),
                rstrip=bool(token.get("rstrip")),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"tokenizer {where}: added_tokens_decoder in {_CONFIG}, or {_ADDED}, does not say "
            "which id has which text; copy it anew from where it came from"
        ) from error
    return tokens


def _chat_template(files: Mapping[str, bytes], config: dict[str, Any], where: str) -> str | None:
    if _TEMPLATE in files:
        template = files[_TEMPLATE].decode(errors="replace")
    else:
        template = config.get("chat_template")
    if isinstance(template, list):  # of named ones
        named = [entry for entry in template if isinstance(entry, dict)]
        default = [entry for entry in named if entry.get("name") == "default"]
        template = (default or named or [{}])[0].get("template")
    if template is not None and not isinstance(template, str):
        raise UserError(
            f"tokenizer {where}: chat_template in {_CONFIG} is neither a text nor a list of named "
            "texts; copy it anew from where it came from"
        )
    return template


def _ids(value: Any) -> tuple[int, ...]:
    """Token ids, given as one, as a list or not at all."""
    values = value if isinstance(value, list) else [value]
    return tuple(i for i in values if isinstance(i, int))

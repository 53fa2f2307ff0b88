"""What the small files beside a tokenizer say: special tokens, ends of text, chat template.

They are those of Hugging Face model directories. None of them has to be there.

    tokenizer_config.json     special tokens, whether bos is added, added tokens, chat template
    special_tokens_map.json   special tokens, where tokenizer_config.json does not have them
    added_tokens.json         ids of added tokens, in older directories
    chat_template.jinja       the chat template, in newer directories
    generation_config.json    ids that end a completion
    config.json               the model's: bos and eos ids
"""

import dataclasses
import json
import re
from collections.abc import Mapping

from ssjax.errors import UserError
from ssjax.files.objects import Fields, parse_id
from ssjax.files.reading import decode_text, parse_json_object

CONFIG, _TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
_ADDED, TEMPLATE = "added_tokens.json", "chat_template.jinja"
GENERATION, _MODEL = "generation_config.json", "config.json"
FILES = (CONFIG, _TOKENS_MAP, _ADDED, TEMPLATE, GENERATION, _MODEL)

ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))

HINT = "copy it anew from where it came from"

# What to do where only transformers knows how to read the files.
TO_JSON = (
    "give its tokenizer.json, which AutoTokenizer.from_pretrained(DIR).save_pretrained(NEW) of "
    "transformers writes"
)

# How JSON spells a half of a surrogate pair, which is no text without the other half.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the text before anything else."""

    content: str
    special: bool  # not text: left out when decoding, and encoded only on request
    lstrip: bool = False  # takes the white space in front of it along
    rstrip: bool = False
    single_word: bool = False  # found only where no letter or digit touches it
    normalized: bool | None = None  # looked for in the normalised text; None: unless special


@dataclasses.dataclass(frozen=True)
class Settings:
    """The small files, read. Token ids are as they stand there, unchecked."""

    tokenizer_class: str | None  # the class of transformers that reads it, without "Fast"
    model_type: str | None  # of the model's config.json
    special_tokens: dict[str, str]  # "bos_token" -> "<s>"
    more_special: frozenset[str]  # special tokens without a role
    added_tokens: dict[int, AddedToken]
    add_bos: bool | None  # whether a prompt begins with bos; None: not said
    add_prefix_space: bool | None
    space_after_special: bool  # a text after a special token begins like the first one
    chat_template: str | None
    bos_id: int | None
    generation_eos_ids: tuple[int, ...]
    model_eos_ids: tuple[int, ...]
    files: dict[str, bytes]  # those that were there, without config.json


def read_settings(files: Mapping[str, bytes], where: str) -> Settings:
    """Reads what is there of `FILES`.

    Raises:
      UserError: a file that is not what its name says, or a value in it of another type.
    """
    config = read_fields(files, CONFIG, where)
    tokens_map = read_fields(files, _TOKENS_MAP, where)
    generation = read_fields(files, GENERATION, where)
    model = read_fields(files, _MODEL, where)
    if not {"architectures", "model_type"} & model.values.keys():
        # A run directory has a config.json of its own.
        model = Fields({}, model.where, HINT)
    named = {role: _token_text(tokens_map, role) for role in ROLES}
    named |= {role: _token_text(config, role) for role in ROLES if role in config.values}
    bos_ids = generation.ids("bos_token_id") or model.ids("bos_token_id")
    tokenizer_class = config.text("tokenizer_class", None) or model.text("tokenizer_class", None)
    return Settings(
        tokenizer_class=tokenizer_class and tokenizer_class.removesuffix("Fast"),
        model_type=model.text("model_type", None),
        special_tokens={role: token for role, token in named.items() if token is not None},
        more_special=_more_special(tokens_map) | _more_special(config),
        added_tokens=_added_tokens(config, read_fields(files, _ADDED, where)),
        add_bos=config.flag("add_bos_token", None),
        add_prefix_space=config.flag("add_prefix_space", None),
        # Files from before the key was introduced mean what it calls legacy.
        space_after_special=bool(config.values) and config.flag("legacy", None) is not False,
        chat_template=_chat_template(files, config, where),
        bos_id=bos_ids[0] if bos_ids else None,
        generation_eos_ids=generation.ids("eos_token_id"),
        model_eos_ids=model.ids("eos_token_id"),
        files={name: files[name] for name in FILES if name in files and name != _MODEL},
    )


def files_to_keep(
    settings: Settings, eos_ids: tuple[int, ...], class_to_keep: str | None, where: str
) -> dict[str, bytes]:
    """The small files with which a tokenizer opens as the same one again.

    config.json is not among them, since a run directory has another one: what it alone says
    moves into generation_config.json, and into tokenizer_config.json.

    Args:
      settings: as read.
      eos_ids: every id that ends a completion.
      class_to_keep: what tokenizer_config.json should name as its class, where it names none.
      where: names the place in error messages.
    """
    generation = {}
    if not set(settings.model_eos_ids) <= set(settings.generation_eos_ids):
        generation["eos_token_id"] = list(eos_ids)
    if settings.bos_id is not None:
        generation["bos_token_id"] = settings.bos_id
    config = {} if class_to_keep is None else {"tokenizer_class": class_to_keep}
    kept = settings.files
    for name, changes in ((GENERATION, generation), (CONFIG, config)):
        values = read_fields(settings.files, name, where).values
        if values | changes != values:
            kept = kept | {name: json.dumps(values | changes, indent=2).encode()}
    return kept


def read_fields(files: Mapping[str, bytes], name: str, where: str) -> Fields:
    """A file with one JSON object; an empty one if it is not there.

    Raises:
      UserError: it is something else.
    """
    place = f"{where}/{name}"
    if name not in files:
        return Fields({}, place, HINT)
    values = parse_json_object(files[name], place, HINT)
    if _SURROGATE.search(files[name]):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise UserError(f"{place}: a text holds half of a surrogate pair; {HINT}") from None
    return Fields(values, place, HINT)


def _token_text(fields: Fields, key: str) -> str | None:
    """A special token, given as its text or as an object that holds it."""
    value = fields.values.get(key)
    if not isinstance(value, dict):
        return fields.text(key, None) or None
    content = fields.group(key).text("content", None)
    if content is None:
        raise fields.wrong(key, "a token")
    return content or None


def _more_special(fields: Fields) -> frozenset[str]:
    tokens = set()
    for key in ("additional_special_tokens", "extra_special_tokens"):
        members = fields.members(key)
        tokens |= {_token_text(members, name) for name in members.values}
    return frozenset(tokens - {None})


def _added_tokens(config: Fields, older: Fields) -> dict[int, AddedToken]:
    tokens = {}
    for text in older.values:
        ids = older.ids(text)
        if len(ids) != 1 or ids[0] < 0:
            raise older.wrong(text, "the id of a token")
        tokens[ids[0]] = AddedToken(text, special=False)
    decoder = config.group("added_tokens_decoder")
    for key in decoder.values:
        token_id, token = parse_id(key), decoder.group(key)
        content = token.text("content", None)
        if token_id is None or not content:
            raise decoder.wrong(key, "a token under its id")
        tokens[token_id] = AddedToken(
            content,
            special=bool(token.flag("special", None)),
            lstrip=bool(token.flag("lstrip", None)),
            rstrip=bool(token.flag("rstrip", None)),
            single_word=bool(token.flag("single_word", None)),
            normalized=token.flag("normalized", None),
        )
    id_of: dict[str, int] = {}
    for token_id, token in tokens.items():
        if (first := id_of.setdefault(token.content, token_id)) != token_id:
            raise UserError(
                f"{config.where}: added token {token.content!r} has the ids {first} and "
                f"{token_id}; copy all files of the tokenizer from the same model"
            )
    return tokens


def _chat_template(files: Mapping[str, bytes], config: Fields, where: str) -> str | None:
    """The template; an empty one is none, as in transformers."""
    if TEMPLATE in files:
        return decode_text(files[TEMPLATE], f"{where}/{TEMPLATE}") or None
    if not isinstance(config.values.get("chat_template"), list):
        return config.text("chat_template", None) or None
    named = {}  # several, with names
    members = config.members("chat_template")
    for name in members.values:
        entry = members.group(name)
        named.setdefault(entry.text("name", None), entry.text("template", None))
    return named.get("default", next(iter(named.values()), None))

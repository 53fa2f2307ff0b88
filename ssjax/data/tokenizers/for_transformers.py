"""The files with which other tools read a tokenizer of ours.

    tokenizer.json          the whole tokenizer, and what stands in front of a prompt
    tokenizer_config.json   special tokens, the chat template, and a class that takes
                            tokenizer.json as it is

Loaded with transformers, `tokenizer(text)` then gives `[*prefix_ids, *encode(text)]`, and
`apply_chat_template(messages)` what `encode_chat(messages)` gives. Before anything is written the
files are read back and compared.
"""

from collections.abc import Mapping
from typing import Any

from ssjax.data.tokenizers import sentencepiece, tokenizer_json
from ssjax.data.tokenizers.merges import cuts_like
from ssjax.data.tokenizers.settings import CONFIG, GENERATION, read_fields
from ssjax.data.tokenizers.tokenizer import Tokenizer, same_tokens, tokenizer_from_files
from ssjax.errors import UserError
from ssjax.files.reading import to_json

# Every version of transformers reads tokenizer.json with this class, and changes nothing in it.
_CLASS = "PreTrainedTokenizerFast"
# But for models of these types version 5 takes another class whatever the files say. A class of
# the directory's own keeps it from that: where such classes are not trusted, the one above is read.
_OTHER_CLASS = {"qwen2": "Qwen2Tokenizer"}
_OWN_CLASS = "tokenizer_as_written.AsWritten"
_OWN_MODULE = '''"""Has AutoTokenizer read tokenizer.json as it is written."""

from transformers import PreTrainedTokenizerFast


class AsWritten(PreTrainedTokenizerFast):
    """Named in tokenizer_config.json, since this model's type has rules of another tokenizer."""
'''
_KEPT = ("model_max_length", "padding_side", "truncation_side")  # of tokenizer_config.json

_TEXTS = (
    "",
    " ",
    "a",
    " a",
    "a ",
    "  The  quick brown\tfox.\n",
    "\n",
    "\n\nx\r\ny",
    "I'LL pay $12345",
    "caf\u00e9 e\u0301 \ufb01",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\U0001f389\U0001f469\u200d\U0001f467",
    "\u00a0\u3000\x00",
    "def f(x):\n    return x  # {}[]<>",
    "<0x0A>",
    "------- ======",
    "a\u2581b",
)
_CHAT = [{"role": "user", "content": "Hi there."}]


def exported_files(tokenizer: Tokenizer, model_type: str) -> tuple[dict[str, bytes], str]:
    """The files for a model.

    Args:
      tokenizer: any.
      model_type: of the model's config.json.

    Returns:
      Names and contents, generation_config.json among them, and a warning: "", or one line about
      what transformers will do otherwise than we.
    """
    ends = tokenizer.eos_ids
    ids = {
        "bos_token_id": first_id(tokenizer),
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "pad_token_id": tokenizer.pad_id,
    }
    generation = to_json(ids).encode()
    description = tokenizer.describe()
    if description is not None:
        config = _config(tokenizer)
        description["post_processor"] = _in_front(tokenizer)
        added = {str(token["id"]): _without_id(token) for token in description["added_tokens"]}
        files = {tokenizer_json.FILE: to_json(description).encode(), GENERATION: generation}
        if (model := tokenizer.files.get(sentencepiece.FILE)) is not None:
            files[sentencepiece.FILE] = model  # other tools convert from it
        config |= {"tokenizer_class": _CLASS, "added_tokens_decoder": added}
        cuts = description.get("pre_tokenizer") or {}
        if "add_prefix_space" in cuts:  # versions before 5 take it from here
            config["add_prefix_space"] = cuts["add_prefix_space"]
        other = _OTHER_CLASS.get(model_type)
        if other is not None and not cuts_like(description, other):
            config["auto_map"] = {"AutoTokenizer": [_OWN_CLASS, _OWN_CLASS]}
            files[f"{_OWN_CLASS.partition('.')[0]}.py"] = _OWN_MODULE.encode()
        tried = []
        for template in _templates(tokenizer):
            own = config if template is None else config | {"chat_template": template}
            candidate = files | {CONFIG: to_json(own).encode()}
            difference = _difference(tokenizer, tokenizer_from_files(candidate, "the export"))
            tried.append((candidate, difference))
            if not difference:
                break
        return min(tried, key=lambda pair: bool(pair[1]))
    known = read_fields(tokenizer.files, CONFIG, "").values
    changed = {CONFIG: to_json(known | _config(tokenizer)).encode(), GENERATION: generation}
    return tokenizer.files | changed, (
        "this kind of tokenizer has no form as tokenizer.json: transformers may cut a text "
        "otherwise than it was trained with"
    )


def first_id(tokenizer: Tokenizer) -> int | None:
    """The id that other tools call bos; None: a prompt begins with none."""
    alone = tokenizer.prefix_ids[0] if len(tokenizer.prefix_ids) == 1 else None
    return tokenizer.bos_id if tokenizer.bos_id is not None else alone


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer_config.json says without the tokenizer's class and tokens."""
    known = read_fields(tokenizer.files, CONFIG, "").values
    config = {key: known[key] for key in _KEPT if known.get(key) is not None}
    config = {"padding_side": "left"} | config | tokenizer.special_tokens
    ids = {"eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    first = first_id(tokenizer)
    if tokenizer.prefix_ids in ((), (first,)):
        config["add_bos_token"] = bool(tokenizer.prefix_ids)
        # Not where no prompt begins with it: a chat template may ask whether there is one.
        ids |= {"bos_token": first} if tokenizer.prefix_ids else {}
    texts = {role: tokenizer.special_text(token_id) for role, token_id in ids.items()}
    config |= {role: text for role, text in texts.items() if text is not None}
    return config | {
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        # A prompt that spells a special token is text; a chat template needs the tokens.
        "split_special_tokens": tokenizer.chat_template is None,
    }


def _in_front(tokenizer: Tokenizer) -> dict[str, Any]:
    """A post-processor that puts the prefix in front of a text, and nothing after it."""
    texts = [tokenizer.special_text(i) or f"<{i}>" for i in tokenizer.prefix_ids]
    front = [{"SpecialToken": {"id": text, "type_id": 0}} for text in texts]
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*front, first],
        "pair": [*front, first, second],
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]}
            for text, i in zip(texts, tokenizer.prefix_ids, strict=True)
        },
    }


def _without_id(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key != "id"}


def _templates(tokenizer: Tokenizer) -> list[str | None]:
    """Forms of the chat template; the right one writes the prefix, as `encode_chat` does.

    After a special token some tokenizers begin a text with a space, others do not.
    """
    template = tokenizer.chat_template
    if template is None:
        return [None]
    prefix = "".join(tokenizer.special_text(i) or "" for i in tokenizer.prefix_ids)
    written = "{{ bos_token }}" if prefix == tokenizer.special_tokens.get("bos_token") else prefix
    return [template, written + template, f"{written} {template}"] if prefix else [template]


def _difference(tokenizer: Tokenizer, again: Tokenizer) -> str:
    """What the exported tokenizer does otherwise, as a line; "" as far as some texts tell."""
    attributes = ("prefix_ids", "eos_ids", "pad_id")
    same = all(getattr(tokenizer, name) == getattr(again, name) for name in attributes)
    if not (same and same_tokens(tokenizer, again)):
        return "tokenizer.json cannot say all of this tokenizer: transformers may read another one"
    texts = list(_TEXTS)
    if tokenizer.chat_template is None:
        names = [tokenizer.special_text(i) for i in tokenizer.eos_ids + tokenizer.prefix_ids]
        texts += [text for name in names if name for text in (name, f"\n{name}\n{name} a")]
    for text in texts:
        ids = tokenizer.encode(text), tokenizer.encode_continuation(text)
        if (again.encode(text), again.encode_continuation(text)) != ids:
            return (
                "tokenizer.json has no rules for all that this tokenizer does: transformers cuts "
                f"some texts otherwise, such as {text!r}"
            )
    if tokenizer.chat_template is not None:
        try:
            ids = tokenizer.encode_chat(_CHAT, add_generation_prompt=True)
        except UserError:  # it wants other messages
            return ""
        text = again.render_chat(_CHAT, add_generation_prompt=True)
        if again.encode(text, special=True) != ids:
            return "the chat template of transformers does not write what stands before a prompt"
    return ""

"""Files of a tokenizer that cannot be read, or that say what is not known here: one line each."""

import pytest
from small_tokenizers import (
    BOS_FIRST,
    added,
    as_json,
    byte_level,
    config,
    hf,
    merges,
    sentencepiece,
    small,
)

from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.errors import UserError

NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer.json": b"{"}, r"^here/tokenizer.json: not JSON \(.*; copy it anew"),
        ({"tokenizer.json": b"[]"}, "^here/tokenizer.json: not a JSON object; copy"),
        ({"tokenizer.json": NESTED}, "^here/tokenizer.json: JSON nested too deeply; copy"),
        ({"tokenizer.json": b"{}"}, r"^tokenizer here: tokenizer.json malformed \(Model missing"),
        ({"tokenizer.json": b'{"model": 1}'}, r"^tokenizer here: tokenizer.json malformed \("),
        (byte_level(added_tokens={}), "^tokenizer here: added_tokens of tokenizer.json malformed"),
        (byte_level(pre_tokenizer=[1]), "^tokenizer here: pre_tokenizer of tokenizer.json malf"),
        (byte_level(normalizer=3), "^tokenizer here: normalizer of tokenizer.json malformed"),
        (byte_level(post_processor="x"), "^tokenizer here: post_processor of tokenizer.json malf"),
        (
            byte_level(post_processor=BOS_FIRST["processors"][1] | {"special_tokens": {}}),
            r"^tokenizer here: post_processor of tokenizer.json malformed \(",
        ),
        (byte_level(padding=[]), "^tokenizer here: padding of tokenizer.json malformed"),
        (
            byte_level(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            r"^tokenizer here: normalizer of tokenizer.json malformed \(Precompiled",
        ),
        (merges() | {"vocab.json": b"\xff"}, "^here/vocab.json, line 1: not UTF-8"),
        (
            merges() | {"vocab.json": b'{"<|endoftext|>": "b"}'},
            '^here/vocab.json: "<.endof.*be the i',
        ),
        (
            merges() | {"vocab.json": b'{"<|endoftext|>": 0, "b": 0}', "merges.txt": b""},
            "'<.endoftext.>' has the id 0",
        ),
        (merges() | {"vocab.json": b'{"<|endoftext|>": -1}'}, '^here/vocab.json: "<.endof.* is -1'),
        (
            merges() | {"vocab.json": b'{"<|endoftext|>": 4000000000}', "merges.txt": b""},
            "has a token with the id 4000000000; copy",
        ),
        (merges() | {"merges.txt": b"no"}, "^tokenizer here: vocab.json and merges.txt malformed"),
        (merges() | {"merges.txt": b"\n\xff \xff"}, "^here/merges.txt, line 2: not UTF-8"),
        (byte_level() | {"tokenizer_config.json": b"nonsense"}, "^here/tokenizer_config.json: not"),
        (byte_level() | {"generation_config.json": b"[3]"}, "generation_config.json: not a JSON o"),
        (byte_level() | {"chat_template.jinja": b"a\n\xff"}, "^here/chat_template.jinja, line 2:"),
        (
            byte_level() | config(eos_token=3),
            '^here/tokenizer_config.json: "eos_token" is 3, but must be a text; copy it anew',
        ),
        (byte_level() | config(eos_token={"text": "a"}), '"eos_token" is {.text.*must be a token'),
        (
            byte_level() | config(eos_token={"content": 3}),
            '"eos_token.content" is 3, but must be a t',
        ),
        (byte_level() | config(eos_token="\ud800"), "tokenizer_config.json: a text holds half of"),
        (byte_level() | config(eos_token="<e>"), "has no token '<e>', which tokenizer_config"),
        (sentencepiece() | config(eos_token="<e>"), "tokenizer.model has no token '<e>', which"),
        (
            byte_level() | config(add_bos_token="false"),
            "add_bos_token. is 'false', but must be true or",
        ),
        (byte_level() | config(legacy=0), '"legacy" is 0, but must be true or false'),
        (
            byte_level() | config(tokenizer_class=["X"]),
            'tokenizer_class" is .*, but must be a text',
        ),
        (
            byte_level() | config(additional_special_tokens=3),
            'tokens" is 3, but must be a list or an',
        ),
        (
            byte_level() | config(additional_special_tokens=["a", 3]),
            r'tokens\[1\]" is 3, but must be a te',
        ),
        (
            byte_level() | config(extra_special_tokens={"a": 3}),
            'tokens.a" is 3, but must be a text',
        ),
        (
            byte_level() | config(added_tokens_decoder=[]),
            r'decoder" is \[\], but must be an object',
        ),
        (byte_level() | added(a={"content": "<e>"}), 'added_tokens_decoder.a" is {.*be a token u'),
        (byte_level() | added(**{"-1": {"content": "<e>"}}), 'decoder.-1" is {.*be a token under'),
        (
            byte_level() | added(**{"\u0661": {"content": "<e>"}}),
            "but must be a token under its id",
        ),
        (byte_level() | added(**{"5": None}), 'decoder.5" is null, but must be a token under'),
        (
            byte_level() | added(**{"5": {"content": "<e>", "special": "yes"}}),
            "decoder.5.special. is 'yes', but must be true or false",
        ),
        (byte_level() | added(**{"5": {"content": "x"}, "6": {"content": "x"}}), "the ids 5 and 6"),
        (
            byte_level() | added(**{"9999": {"content": "<e>"}}),
            "'<e>' cannot have the id 9999; copy all files",
        ),
        (
            byte_level() | added(**{"334": {"content": "<|im_start|>"}}),
            "'<.im_start.>' has the id 1 in tokenizer.json and 334 beside it; copy all",
        ),
        (sentencepiece() | added(**{"99999999": {"content": "<e>"}}), "has a token with the id 99"),
        (byte_level() | {"added_tokens.json": b'{"<e>": "334"}'}, 'added_tokens.json: "<e>" is'),
        (byte_level() | {"added_tokens.json": b'{"\\n\\n": "x"}'}, r'json: "\\n\\n" is .x'),
        (byte_level() | {"added_tokens.json": b'{"<e>": [1, 2]}'}, '"<e>" is .*be the id of a tok'),
        *(
            (
                byte_level() | {name: as_json({"model_type": "gpt2", key: value})},
                f'^here/{name}: "{key}" is .*, but must be a whole number or a list of them',
            )
            for name in ("generation_config.json", "config.json")
            for key, value in (
                ("eos_token_id", "2"),
                ("eos_token_id", [1, "2"]),
                ("eos_token_id", True),
                ("bos_token_id", 1.5),
                ("eos_token_id", {}),
            )
        ),
        (
            byte_level() | {"special_tokens_map.json": b'{"bos_token": [1]}'},
            r'^here/special_tokens_map.json: "bos_token" is \[1\], but must be a text',
        ),
        (byte_level() | config(chat_template=3), 'chat_template" is 3, but must be a text'),
        (
            byte_level() | config(chat_template=["a"]),
            r'chat_template\[0\]" is .a., but must be an object',
        ),
        (
            byte_level() | config(chat_template=[{"template": 3}]),
            'template" is 3, but must be a te',
        ),
        (byte_level() | {"config.json": b"{"}, "^here/config.json: not JSON"),
        (
            byte_level(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
            "has the decoder WordPiece, which is not supported; use a model",
        ),
        (byte_level(decoder=None), "has the decoder none, which is not supported"),
        (
            byte_level(
                pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
            )
            | config(add_prefix_space=False),
            "add_prefix_space is true in tokenizer.json, but false in tokenizer_config.json; write",
        ),
        (
            {"vocab.json": b'{"a": 0}', "merges.txt": b""}
            | config(tokenizer_class="GPT2Tokenizer"),
            r'^tokenizer here does not say which token ends a text; put {"eos_token"',
        ),
    ],
)
def test_malformed_files(files, message, capfd):
    with pytest.raises(UserError, match=message) as error:
        tokenizer_from_files(files, "here")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # where the library panics it prints a stack


TO_JSON = r"tokenizer.json, which AutoTokenizer.from_pretrained\(DIR\).save_pretrained\(NEW\)"


@pytest.mark.parametrize(
    "files",
    [
        merges() | config(tokenizer_class="CohereTokenizerFast"),
        merges() | config(tokenizer_class="RobertaTokenizer"),
        merges() | config(tokenizer_class="PreTrainedTokenizerFast"),
        merges() | {"config.json": hf(tokenizer_class="HerbertTokenizer")},
        merges() | {"config.json": hf("llama")},
        merges() | {"config.json": hf("gemma2")},
        # The end of text lies outside: not GPT-2's vocabulary.
        merges() | added(**{"333": {"content": "<e>", "special": True}}),
        sentencepiece() | config(tokenizer_class="XLNetTokenizer"),
        sentencepiece() | config(tokenizer_class="XLMRobertaTokenizerFast"),
        sentencepiece() | config(tokenizer_class="\n"),
    ],
)
def test_a_tokenizer_of_unknown_rules_asks_for_a_tokenizer_json(files):
    with pytest.raises(UserError, match=TO_JSON) as error:
        tokenizer_from_files(files, "here")
    assert "\n" not in str(error.value)


def test_half_a_surrogate_pair_is_no_text():
    for name in ("sentencepiece", "byte level"):
        for encode in (small(name).encode, small(name).encode_continuation):
            with pytest.raises(UserError, match="holds half of a surrogate pair.*; take it out"):
                encode("a\ud800")

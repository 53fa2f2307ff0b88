"""The files that other tools read: ids by the library `tokenizers`, and by transformers."""

import io
import json
import random

import pytest
import sentencepiece as sentencepiece_library
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    CHATML,
    LOSSLESS,
    NASTY,
    SMALL,
    SPECIAL,
    TEXTS,
    as_json,
    byte_level,
    lossless,
    merges,
    sentencepiece,
    sentencepiece_chat,
    small,
)

from ssjax.data.tokenizers.for_transformers import exported_files
from ssjax.data.tokenizers.tokenizer import same_tokens, tokenizer_from_files

CHAT = [{"role": "user", "content": "Hi\n there"}]
# Runs in which merges overlap, symbols in every place, pieces that are spelled.
TRICKY = [
    *NASTY,
    *TEXTS[:4],
    *SPECIAL,
    "-------",
    "aaaaaaa  aaa",
    "hahahaha",
    "\n#Person2#\n",
    "\n<s>\n",
    "#Person1#<0x0A>#Person1#",
    "\n<0x41>",
    "</s>\n</s>",
    "a\u2581b \u2581",
    "x" * 99,
]


def library_of(files, *, special=False):
    """What the exported tokenizer.json alone gives."""
    library = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    library.encode_special_tokens = not special
    return library


def spm(**options):
    """A SentencePiece model with rules of its own."""
    model = io.BytesIO()
    sentencepiece_library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 2),
        model_writer=model,
        minloglevel=2,
        byte_fallback=True,
        **{"model_type": "bpe", "vocab_size": 340} | options,
    )
    return {"tokenizer.model": model.getvalue()}


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS = {
    **{name: make() for name, make in SMALL.items()},
    "legacy": sentencepiece()
    | {
        "tokenizer_config.json": as_json(
            {"added_tokens_decoder": {"360": {"content": "<x>", "special": False}}}
        )
    },
    "exact": sentencepiece()
    | {
        "tokenizer_config.json": as_json(
            {"added_tokens_decoder": {"360": {"content": "<x>", "special": False}}, "legacy": False}
        )
    },
    "no space in front": sentencepiece()
    | {"tokenizer_config.json": as_json({"add_prefix_space": False})},
    "fewer spaces": spm(normalization_rule_name="identity", user_defined_symbols=["<sep>"]),
    "no dummy prefix": spm(add_dummy_prefix=False, **IDENTITY),
    "renamed control piece": spm(control_symbols=["<unused>"], **IDENTITY)
    | {
        "tokenizer_config.json": as_json(
            {"added_tokens_decoder": {"3": {"content": "<tool>", "special": True}}}
        )
    },
    "no prefix": sentencepiece() | {"tokenizer_config.json": as_json({"add_bos_token": False})},
    "an ordinary end": sentencepiece()
    | {"generation_config.json": as_json({"eos_token_id": [3, 340]})},
    "Qwen2": merges("<|im_end|>")
    | {
        "tokenizer_config.json": as_json(
            {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
        )
    },
    "a space in front": merges()
    | {
        "tokenizer_config.json": as_json(
            {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
        )
    },
    "OPT": merges("<s>", "<pad>", "</s>", "<unk>"),
}


# The library writes an ordinary token that ends a text, and the space in front of bytes.
WRITTEN_OTHERWISE = ("an ordinary end", "a space in front")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_tokenizer(kind):
    """By the library alone, and when we open the files again."""
    tokenizer = tokenizer_from_files(KINDS[kind], kind)
    files, warning = exported_files(tokenizer, "llama")
    assert warning == ""
    library = library_of(files)
    again = tokenizer_from_files(files, "again")
    config = json.loads(files["tokenizer_config.json"])
    assert again.prefix_ids == tokenizer.prefix_ids
    assert (again.eos_ids, again.pad_id) == (tokenizer.eos_ids, tokenizer.pad_id)
    assert same_tokens(again, tokenizer)
    for text in (*TRICKY, "<x> a<x>b", " <x>", "a<sep> b", "<tool>"):
        if tokenizer.chat_template and text.startswith(("<", " <")):
            continue  # where a text may hold special tokens, these are such
        ids = tokenizer.encode(text)
        assert library.encode(text).ids == [*tokenizer.prefix_ids, *ids], text
        assert again.encode(text) == ids, text
        assert again.encode_continuation(text) == tokenizer.encode_continuation(text), text
        if kind not in WRITTEN_OTHERWISE:
            assert library.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids), text
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config.get("add_bos_token") in (bool(tokenizer.prefix_ids), None)
    assert config["split_special_tokens"] == (tokenizer.chat_template is None)
    ends = json.loads(files["generation_config.json"])["eos_token_id"]
    assert (ends if isinstance(ends, list) else [ends]) == list(tokenizer.eos_ids)


LIBRARY = library_of(exported_files(small("sentencepiece"), "llama")[0])
PARTS = st.sampled_from(
    ["a", " ", "e", "\n", "#Person1#", "#", "on", "<0x0A>", "</s>", "the", "\u2581"]
)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.lists(PARTS).map("".join))
def test_any_text_has_the_same_ids(text):
    assert LIBRARY.encode(text).ids == [2, *small("sentencepiece").encode(text)]


@pytest.mark.stress
@pytest.mark.parametrize("name", LOSSLESS)
def test_ids_of_published_tokenizers(name):
    tokenizer = lossless(name)
    files, warning = exported_files(tokenizer, "llama")
    assert warning == ""
    library = library_of(files, special=tokenizer.chat_template is not None)
    for text in TRICKY:
        if not (tokenizer.chat_template and "<" in text):
            assert library.encode(text).ids == [*tokenizer.prefix_ids, *tokenizer.encode(text)]


def test_a_kind_without_such_a_form_says_so_and_keeps_its_files():
    tokenizer = tokenizer_from_files(spm(model_type="unigram", vocab_size=300), "here")
    files, warning = exported_files(tokenizer, "llama")
    assert warning.startswith("this kind of tokenizer has no form as tokenizer.json")
    assert files.keys() == {"tokenizer.model", "tokenizer_config.json", "generation_config.json"}
    assert "tokenizer_class" not in json.loads(files["tokenizer_config.json"])


def test_a_table_of_characters_is_kept_and_its_difference_said():
    """The library looks characters up by graphemes, SentencePiece does not."""
    tokenizer = tokenizer_from_files(spm(normalization_rule_name="nmt_nfkc"), "here")
    files, warning = exported_files(tokenizer, "llama")
    assert warning.endswith(r"transformers cuts some texts otherwise, such as '\n\nx\r\ny'")
    for text in (*TEXTS, "\ufb01ne  \u2460 caf\u00e9 \n a", " a ", "   "):
        expected = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
        assert library_of(files).encode(text).ids == expected


def with_template(files, template, **config):
    known = json.loads(files.get("tokenizer_config.json", b"{}"))
    config = known | {"chat_template": template} | config
    return files | {"tokenizer_config.json": as_json(config)}


@pytest.mark.parametrize(
    "files",
    [
        byte_level(),
        sentencepiece_chat(),  # writes no bos, which every prompt begins with
        with_template(sentencepiece_chat(), "{{ bos_token }}" + CHATML),
        with_template(sentencepiece_chat(), "User: {{ messages[0].content }}"),
        with_template(sentencepiece_chat(), "User: {{ messages[0].content }}", legacy=True),
        # A bos that only the model's files know of, and no prompt begins with.
        with_template(byte_level(), "{{ bos_token or '-' }}{{ messages[0].content }}")
        | {"generation_config.json": as_json({"bos_token_id": 0})},
    ],
)
def test_the_chat_template_writes_what_stands_in_front(files):
    """transformers puts no prefix in front of a chat."""
    tokenizer = tokenizer_from_files(files, "here")
    files, warning = exported_files(tokenizer, "llama")
    assert warning == ""
    ids = tokenizer.encode_chat(CHAT, add_generation_prompt=True)
    again = tokenizer_from_files(files, "again")
    text = again.render_chat(CHAT, add_generation_prompt=True)
    assert library_of(files, special=True).encode(text, add_special_tokens=False).ids == ids
    assert again.encode_chat(CHAT, add_generation_prompt=True) == ids


def test_qwen2_models_name_a_class_where_their_tokenizer_is_another():
    own, _ = exported_files(tokenizer_from_files(KINDS["Qwen2"], "own"), "qwen2")
    other, _ = exported_files(small("sentencepiece"), "qwen2")
    assert "auto_map" not in json.loads(own["tokenizer_config.json"])
    named = json.loads(other["tokenizer_config.json"])["auto_map"]["AutoTokenizer"][0]
    assert f"class {named.split('.')[1]}(" in other[f"{named.split('.')[0]}.py"].decode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_transformers_reads_the_same_tokenizer(kind, model_type, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = tokenizer_from_files(KINDS[kind], kind)
    for name, content in exported_files(tokenizer, model_type)[0].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        if tokenizer.chat_template and "<" in text:
            continue
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
        assert theirs(text).input_ids == ids, text
        if kind not in WRITTEN_OTHERWISE:
            assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids), text
    assert theirs(["a"]).keys() == {"input_ids", "attention_mask"}
    if tokenizer.special_text(tokenizer.eos_id):
        assert theirs.eos_token_id == tokenizer.eos_id
        assert theirs.pad_token_id == tokenizer.pad_id
    assert len(theirs) == tokenizer.vocab_size
    if tokenizer.chat_template:
        chat = theirs.apply_chat_template(CHAT, add_generation_prompt=True)
        assert chat["input_ids"] == tokenizer.encode_chat(CHAT, add_generation_prompt=True)


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer"])
def test_vocab_and_merges_are_read_as_transformers_does(name, space, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    # Merges that other ways of cutting a text would not reach.
    pairs = ["1 2", "' L", "'L L", "\u010a \u010a", ". \u010a", "\u0120 \u0120", "( x", "O N"]
    files = merges(*("".join(pair.split()) for pair in pairs), "<|im_end|>")
    files["merges.txt"] += "".join(f"{pair}\n" for pair in pairs).encode()
    last = json.loads(files["vocab.json"])["<|im_end|>"]
    config = {
        "tokenizer_class": name,
        "add_prefix_space": space,
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "bos_token": None,
        "pad_token": None,
        "added_tokens_decoder": {
            "0": {"content": "<|endoftext|>", "special": True, "normalized": False},
            str(last): {"content": "<|im_end|>", "special": True, "normalized": False},
            str(last + 1): {"content": "<tool>", "special": False, "normalized": False},
            str(last + 2): {"content": "\u304c", "special": False, "normalized": True},
        },
    }
    files["tokenizer_config.json"] = as_json(config)
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    tokenizer = tokenizer_from_files(files, name)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    parts = [
        *TRICKY,
        *"12345  ().\n\r\u00a0\u2028",
        "'LL",
        "'Ll",
        "DON",
        "e\u0301",
        "\u0663",
        "x",
        "ON",
    ]
    parts += ["<|im_end|>", "<tool>", "\u304b\u3099", "\u017f", ".\n\n", "(x"]
    for text in [
        "",
        *parts,
        *("".join(rng.choices(parts, k=rng.randrange(2, 9))) for _ in range(99)),
    ]:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert tokenizer.encode(text, special=True) == ids, text

"""What the files beside a tokenizer change."""

import json

import pytest
from small_tokenizers import (
    CHATML,
    as_json,
    byte_level,
    llama,
    merges,
    metaspace,
    published_path,
    sentencepiece,
)

from ssjax.data.tokenizer import open_tokenizer, tokenizer_from_files
from ssjax.errors import UserError

BOS_FIRST = {
    "type": "Sequence",
    "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0],
                                                 "tokens": ["<|endoftext|>"]}},
        },
    ],
}  # fmt: skip


def hf(**values):
    return as_json({"architectures": ["SomeForCausalLM"], "model_type": "some", **values})


def config(**values):
    return {"tokenizer_config.json": as_json(values)}


GPT2_LIKE = merges()
OPT_LIKE = merges("<s>", "<pad>", "</s>", "<unk>")  # ids 332 to 335
ADDED = {str(360 + i): {"content": f"<e{i}>", "special": True} for i in range(3)}

FAMILIES = {
    # what: files, prefix_ids, eos_ids, pad_id
    "ours": (sentencepiece(), (2,), (3,), 0),
    "Llama 2": (llama(), (1,), (2,), 2),
    "Llama 2, SentencePiece": (sentencepiece() | config(add_bos_token=True), (2,), (3,), 0),
    "Phi-3": (llama(post_processor=None) | config(add_bos_token=False), (), (2,), 2),
    "Phi-3, SentencePiece": (sentencepiece() | config(add_bos_token=False), (), (3,), 0),
    "the flag without a post-processor": (
        llama(post_processor=None) | config(add_bos_token=True, bos_token="<s>"), (1,), (2,), 2),
    "the flag over the post-processor": (
        llama() | config(add_bos_token=False, bos_token="<s>", eos_token="</s>"), (), (2,), 2),
    "Mistral": (metaspace() | config(add_bos_token=True, bos_token={"content": "<s>"}),
                (1,), (2,), 2),
    "Qwen": (byte_level() | config(bos_token=None, add_bos_token=False, eos_token="<|im_end|>",
                                   pad_token="<|endoftext|>")
             | {"generation_config.json": as_json({"eos_token_id": [2, 0], "bos_token_id": 0}),
                "config.json": hf(bos_token_id=0, eos_token_id=2)}, (), (2, 0), 0),
    "Qwen without its bos": (byte_level() | config(add_bos_token=True, eos_token="<|im_end|>"),
                             (), (2,), 2),
    "Llama 3": (byte_level(post_processor=BOS_FIRST) | config(eos_token="<|im_end|>")
                | {"generation_config.json": as_json({"eos_token_id": [1, 2]})},
                (0,), (2, 1), 2),
    "GPT-2": (GPT2_LIKE | {"config.json": hf(bos_token_id=0, eos_token_id=0)}, (), (0,), 0),
    "GPT-2, bare": (GPT2_LIKE, (), (0,), 0),
    "Phi-1.5": (GPT2_LIKE | config(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
                | {"config.json": hf(bos_token_id=None, eos_token_id=None)}, (), (0,), 0),
    "OPT": (OPT_LIKE | config(add_bos_token=True, bos_token="</s>", eos_token="</s>",
                              pad_token="<pad>")
            | {"config.json": hf(bos_token_id=334, eos_token_id=334)}, (334,), (334,), 333),
    "OPT, bare": (OPT_LIKE, (334,), (334,), 334),
    "Gemma": (sentencepiece() | config(add_bos_token=True, bos_token="<s>", eos_token="</s>")
              | {"generation_config.json": as_json({"eos_token_id": [3, 107]})}, (2,), (3, 107), 0),
    "a map of special tokens": (
        sentencepiece() | config(added_tokens_decoder=ADDED)
        | {"special_tokens_map.json": as_json({"eos_token": {"content": "<e1>"},
                                               "pad_token": "<e0>"})}, (2,), (361,), 360),
    "tokenizer_config.json over the map": (
        sentencepiece() | config(added_tokens_decoder=ADDED, eos_token="<e2>")
        | {"special_tokens_map.json": as_json({"eos_token": "<e1>"})}, (2,), (362,), 0),
    "added_tokens.json": (
        sentencepiece() | {"added_tokens.json": as_json({"<e>": 360})} | config(eos_token="<e>"),
        (2,), (360,), 0),
    "added to a tokenizer.json": (
        byte_level() | config(added_tokens_decoder={"334": {"content": "<e>", "special": True}},
                              eos_token="<e>"), (), (334,), 334),
    "ends of the model last, and only those that exist": (
        sentencepiece() | {"generation_config.json": as_json({"eos_token_id": [7, 9999, -1, None]}),
                           "config.json": hf(eos_token_id=[8, 3, 360])}, (2,), (7, 3, 8), 0),
    "a config.json of a run": (
        sentencepiece() | {"config.json": as_json({"eos_token_id": 8})}, (2,), (3,), 0),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, tmp_path):
    files, *expected = FAMILIES[family]
    tokenizer = tokenizer_from_files(files, family)
    assert [tokenizer.prefix_ids, tokenizer.eos_ids, tokenizer.pad_id] == expected
    assert tokenizer.eos_id == tokenizer.eos_ids[0]
    assert "config.json" not in tokenizer.files
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {}}')  # that of a run directory
    opened = open_tokenizer(tmp_path)
    assert [opened.prefix_ids, opened.eos_ids, opened.pad_id] == expected
    assert opened.files == tokenizer.files


@pytest.mark.parametrize(
    "name, prefix_ids, eos_ids, pad_id, vocab_size",
    [
        ("llama2", (1,), (2,), 2, 32000),
        ("phi2", (), (50256,), 50256, 50295),
        ("phi3_mini", (), (32000,), 32000, 32011),
        ("gpt2", (), (50256,), 50256, 50257),
        ("opt", (2,), (2,), 2, 50265),
        ("t5", (), (1,), 0, 32100),
        ("../weights/stories260K_hf", (1,), (2,), 2, 512),
    ],
)
def test_published_families(name, prefix_ids, eos_ids, pad_id, vocab_size):
    tokenizer = open_tokenizer(published_path(name))
    assert (tokenizer.prefix_ids, tokenizer.eos_ids) == (prefix_ids, eos_ids)
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (pad_id, vocab_size)


def test_what_the_model_says_moves_into_the_generation_config():
    """A run directory has a config.json of its own."""
    generation = {"temperature": 0.6, "eos_token_id": 3}
    files = sentencepiece() | {
        "generation_config.json": as_json(generation),
        "config.json": hf(eos_token_id=7, bos_token_id=2),
    }
    kept = tokenizer_from_files(files, "here").files["generation_config.json"]
    assert json.loads(kept) == generation | {"eos_token_id": [3, 7], "bos_token_id": 2}
    files["config.json"] = hf(eos_token_id=3)
    kept = tokenizer_from_files(files, "here").files["generation_config.json"]
    assert kept == files["generation_config.json"]  # nothing to add, not a byte changes


def test_only_the_files_of_the_tokenizer_are_kept(tmp_path):
    files = llama() | sentencepiece() | config(chat_template=CHATML)
    (tmp_path / "model.safetensors").write_bytes(b"large")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("Tom") == [270]  # that of tokenizer.json, which is preferred
    assert tokenizer.files.keys() == {"tokenizer.json", "tokenizer_config.json"}


def test_a_prefix_space_that_the_files_ask_for():
    plain = tokenizer_from_files(GPT2_LIKE, "plain")
    spaced = tokenizer_from_files(GPT2_LIKE | config(add_prefix_space=True), "spaced")
    assert spaced.encode("Anna") == plain.encode(" Anna") != plain.encode("Anna")
    assert spaced.encode_continuation("Anna") == plain.encode("Anna")
    assert spaced.decode(spaced.encode("Anna")) == "Anna"


@pytest.mark.parametrize(
    "files, token",
    [
        (merges("<x>") | config(pad_token="<x>"), "<x>"),
        (merges("<x>") | config(additional_special_tokens=["<x>"]), "<x>"),
        (merges("<x>") | config(extra_special_tokens={"image_token": "<x>"}), "<x>"),
        (merges("<x>") | {"special_tokens_map.json": as_json(
            {"additional_special_tokens": [{"content": "<x>"}]})}, "<x>"),
        (OPT_LIKE, "<pad>"),
        (GPT2_LIKE, "<|endoftext|>"),
    ],
)  # fmt: skip
def test_tokens_that_only_the_files_beside_call_special(files, token):
    tokenizer = tokenizer_from_files(files, "here")
    text = f"a{token}b"
    assert len(tokenizer.encode(text, special=True)) == 3
    assert len(tokenizer.encode(text)) > 3
    assert tokenizer.decode(tokenizer.encode(text, special=True)) == "ab"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_ordinary_added_token_that_a_file_calls_special():
    files = llama()
    description = json.loads(files["tokenizer.json"])
    description["added_tokens"][2] |= {"special": False, "normalized": False}
    files["tokenizer.json"] = as_json(description)
    ordinary = tokenizer_from_files(files | config(eos_token="<s>"), "here")
    special = tokenizer_from_files(files | config(eos_token="</s>"), "here")
    assert 2 in ordinary.encode("a</s>b") and 2 not in special.encode("a</s>b")
    assert ordinary.token_bytes(2) == b"</s>" and special.token_bytes(2) == b""


def test_the_text_of_a_token_that_ends_a_completion_is_skipped():
    files = sentencepiece() | {"generation_config.json": as_json({"eos_token_id": [3, 340]})}
    assert tokenizer_from_files(sentencepiece(), "here").token_bytes(340) != b""
    assert tokenizer_from_files(files, "here").token_bytes(340) == b""


def test_added_tokens_are_text_not_bytes():
    """A byte-level vocabulary spells bytes with characters; an added token is what it says."""
    added = {"334": {"content": "éé", "special": False}}
    tokenizer = tokenizer_from_files(byte_level() | config(added_tokens_decoder=added), "here")
    assert tokenizer.encode("aééb")[1] == 334
    assert tokenizer.decode(tokenizer.encode("aééb")) == "aééb"


def test_a_token_that_no_bytes_could_have_made():
    tokenizer = tokenizer_from_files(merges("a b"), "here")
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == b"a b"


def test_a_byte_is_one_only_where_the_decoder_says_so():
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    assert tokenizer_from_files(llama(), "here").token_bytes(3 + 0x41) == b"A"
    assert tokenizer_from_files(llama(decoder=replace), "here").token_bytes(3 + 0x41) == b"<0x41>"


def test_line_ends_of_windows_in_merges():
    files = dict(GPT2_LIKE)
    files["merges.txt"] = files["merges.txt"].replace(b"\n", b"\r\n")
    expected = tokenizer_from_files(GPT2_LIKE, "here").encode("Anna wants tea.")
    assert tokenizer_from_files(files, "here").encode("Anna wants tea.") == expected


def test_words_keep_their_spaces_where_they_are_split_first():
    """T5's way: white space goes, and every word gets a mark."""
    words = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        ],
    }
    tokenizer = tokenizer_from_files(llama(normalizer=None, pre_tokenizer=words), "here")
    assert tokenizer.encode(" Tom  a") == tokenizer.encode("Tom a") == [270, 271]
    assert tokenizer.encode_continuation(" Tom a") == [270, 271]
    assert tokenizer.decode_continuation(tokenizer.encode_continuation("e Tom a")) == "e Tom a"


def test_limits_in_a_tokenizer_json_do_not_cut_or_pad():
    limits = {
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                       "stride": 0},
        "padding": {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"},
    }  # fmt: skip
    limited = tokenizer_from_files(byte_level(**limits), "limited")
    free = tokenizer_from_files(byte_level(), "free")
    for text in ("a", "a longer text that has more than three tokens"):
        assert limited.encode(text) == free.encode(text)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer.json": b"{"}, r"^tokenizer here: tokenizer.json is not valid JSON \(.*came"),
        ({"tokenizer.json": b"[]"}, "^tokenizer here: tokenizer.json holds no JSON object; copy"),
        ({"tokenizer.json": b"{}"}, r"^tokenizer here is malformed \(Model missing.*; copy it"),
        ({"tokenizer.json": b'{"model": 1}'}, r"^tokenizer here is malformed \("),
        (merges() | {"vocab.json": b"\xff"}, "vocab.json is not valid JSON"),
        (merges() | {"vocab.json": b'{"a": "b"}'}, "^tokenizer here is malformed"),
        (merges() | {"merges.txt": b"no"}, "^tokenizer here is malformed"),
        (merges() | {"merges.txt": b"\xff \xff"}, "merges.txt is not UTF-8 text"),
        (byte_level() | {"tokenizer_config.json": b"nonsense"}, "config.json is not valid JSON"),
        (byte_level() | config(eos_token=3), "names 3 as a token; copy it anew"),
        (byte_level() | config(eos_token={"text": "a"}), "names {'text': 'a'} as a token; copy it"),
        (byte_level() | config(eos_token="<e>"), "has no token '<e>', which tokenizer_config"),
        (sentencepiece() | config(eos_token="<e>"), "tokenizer.model has no token '<e>', which"),
        (byte_level() | config(added_tokens_decoder={"a": 3}), "does not say which id has which"),
        (byte_level() | config(added_tokens_decoder={"9999": {"content": "<e>"}}),
         "'<e>' cannot have the id 9999; copy all files"),
        (byte_level() | config(chat_template=3), "neither a text nor a list of named texts"),
        (byte_level() | config(chat_template=[{"name": "default"}, {}]) | {"config.json": b"{"},
         "config.json is not valid JSON"),
        (byte_level(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
         "has the decoder WordPiece, which is not supported; use a model"),
        (byte_level(decoder=None), "has the decoder none, which is not supported"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b""},
         r'^tokenizer here does not say which token ends a text; put {"eos_token"'),
    ],
)  # fmt: skip
def test_malformed_files(files, message):
    with pytest.raises(UserError, match=message) as error:
        tokenizer_from_files(files, "here")
    assert "\n" not in str(error.value)


def test_a_template_in_a_file_of_its_own_goes_first():
    files = byte_level() | {"chat_template.jinja": "{{ 1 }}é".encode()}
    assert tokenizer_from_files(files, "here").chat_template == "{{ 1 }}é"


@pytest.mark.parametrize(
    "named, chosen",
    [
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "chat", "template": "c"}, {"name": "rag", "template": "r"}], "c"),
        ([], None),
    ],
)
def test_named_templates(named, chosen):
    files = byte_level() | config(chat_template=named)
    assert tokenizer_from_files(files, "here").chat_template == chosen

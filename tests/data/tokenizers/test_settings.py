"""What the files beside a tokenizer change."""

import json

import pytest
from small_tokenizers import (
    BOS_FIRST,
    CHATML,
    NASTY,
    as_json,
    byte_level,
    config,
    hf,
    llama,
    merges,
    metaspace,
    published_path,
    sentencepiece,
    small,
)

from ssjax.data.tokenizers.tokenizer import open_tokenizer, tokenizer_from_files

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
        llama(post_processor=None) | config(add_bos_token=True, bos_token="<s>"),
        (1,),
        (2,),
        2,
    ),
    "the flag over the post-processor": (
        llama() | config(add_bos_token=False, bos_token="<s>", eos_token="</s>"),
        (),
        (2,),
        2,
    ),
    "Mistral": (
        metaspace() | config(add_bos_token=True, bos_token={"content": "<s>"}),
        (1,),
        (2,),
        2,
    ),
    "Qwen": (
        byte_level()
        | config(
            bos_token=None, add_bos_token=False, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
        | {
            "generation_config.json": as_json({"eos_token_id": [2, 0], "bos_token_id": 0}),
            "config.json": hf(bos_token_id=0, eos_token_id=2),
        },
        (),
        (2, 0),
        0,
    ),
    "Qwen without its bos": (
        byte_level() | config(add_bos_token=True, eos_token="<|im_end|>"),
        (),
        (2,),
        2,
    ),
    "Llama 3": (
        byte_level(post_processor=BOS_FIRST)
        | config(eos_token="<|im_end|>")
        | {"generation_config.json": as_json({"eos_token_id": [1, 2]})},
        (0,),
        (2, 1),
        2,
    ),
    "GPT-2": (GPT2_LIKE | {"config.json": hf("gpt2", bos_token_id=0, eos_token_id=0)}, (), (0,), 0),
    "GPT-2, bare": (GPT2_LIKE, (), (0,), 0),
    "Phi-1.5": (
        GPT2_LIKE
        | config(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
        | {"config.json": hf("phi", bos_token_id=None, eos_token_id=None)},
        (),
        (0,),
        0,
    ),
    "OPT": (
        OPT_LIKE
        | config(
            add_bos_token=True,
            bos_token="</s>",
            eos_token="</s>",
            pad_token="<pad>",
            tokenizer_class="GPT2Tokenizer",
        )
        | {"config.json": hf("opt", bos_token_id=334, eos_token_id=334)},
        (334,),
        (334,),
        333,
    ),
    "OPT, bare": (OPT_LIKE, (334,), (334,), 334),
    "Gemma": (
        sentencepiece()
        | config(add_bos_token=True, bos_token="<s>", eos_token="</s>")
        | {"generation_config.json": as_json({"eos_token_id": [3, 107]})},
        (2,),
        (3, 107),
        0,
    ),
    "a map of special tokens": (
        sentencepiece()
        | config(added_tokens_decoder=ADDED)
        | {
            "special_tokens_map.json": as_json(
                {"eos_token": {"content": "<e1>"}, "pad_token": "<e0>"}
            )
        },
        (2,),
        (361,),
        360,
    ),
    "tokenizer_config.json over the map": (
        sentencepiece()
        | config(added_tokens_decoder=ADDED, eos_token="<e2>")
        | {"special_tokens_map.json": as_json({"eos_token": "<e1>"})},
        (2,),
        (362,),
        0,
    ),
    "added_tokens.json": (
        sentencepiece() | {"added_tokens.json": as_json({"<e>": 360})} | config(eos_token="<e>"),
        (2,),
        (360,),
        0,
    ),
    "added to a tokenizer.json": (
        byte_level()
        | config(
            added_tokens_decoder={"334": {"content": "<e>", "special": True}}, eos_token="<e>"
        ),
        (),
        (334,),
        334,
    ),
    "ends of the model last, and only those that exist": (
        sentencepiece()
        | {
            "generation_config.json": as_json({"eos_token_id": [7, 9999, -1, None]}),
            "config.json": hf(eos_token_id=[8, 3, 360]),
        },
        (2,),
        (7, 3, 8),
        0,
    ),
    "a config.json of a run": (
        sentencepiece() | {"config.json": as_json({"eos_token_id": 8})},
        (2,),
        (3,),
        0,
    ),
}


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
        (
            merges("<x>")
            | {
                "special_tokens_map.json": as_json(
                    {"additional_special_tokens": [{"content": "<x>"}]}
                )
            },
            "<x>",
        ),
        (OPT_LIKE, "<pad>"),
        (GPT2_LIKE, "<|endoftext|>"),
    ],
)
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
        "truncation": {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 50},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    }
    limited = tokenizer_from_files(byte_level(**limits), "limited")
    free = tokenizer_from_files(byte_level(), "free")
    for text in ("a", "a longer text that has more than three tokens"):
        assert limited.encode(text) == free.encode(text)


@pytest.mark.parametrize(
    "files, name",
    [
        (merges() | config(tokenizer_class="GPT2TokenizerFast"), "merges"),
        (merges() | config(tokenizer_class="CodeGenTokenizer"), "merges"),
        (merges() | {"config.json": hf("gpt2")}, "merges"),
        (sentencepiece() | config(tokenizer_class="LlamaTokenizerFast"), "sentencepiece"),
        (sentencepiece() | config(tokenizer_class="GemmaTokenizer"), "sentencepiece"),
    ],
)
def test_classes_that_read_the_files_as_they_are(files, name):
    tokenizer = tokenizer_from_files(files, "here")
    for text in NASTY:
        assert tokenizer.encode(text) == small(name).encode(text)


def test_qwen2_cuts_digits_and_normalises(tmp_path):
    files = merges("<|im_end|>", "12")
    files["merges.txt"] += b"1 2\n"
    end = config(eos_token="<|im_end|>")
    gpt2 = tokenizer_from_files(files | config(tokenizer_class="GPT2Tokenizer"), "here")
    by_class = tokenizer_from_files(
        files | config(tokenizer_class="Qwen2TokenizerFast", eos_token="<|im_end|>"), "here"
    )
    by_type = tokenizer_from_files(files | end | {"config.json": hf("qwen3")}, "here")
    assert len(gpt2.encode("12")) == 1
    by_type.save(tmp_path)  # without the model's config.json
    for qwen in (by_class, by_type, open_tokenizer(tmp_path)):
        assert len(qwen.encode("12")) == 2
        assert qwen.encode("e\u0301") == qwen.encode("\u00e9") != gpt2.encode("e\u0301")
        assert qwen.encode("DON'T") == gpt2.encode("DON") + gpt2.encode("'T")


def test_a_space_that_llama_files_say_is_not_added():
    files = sentencepiece() | config(tokenizer_class="LlamaTokenizer", add_prefix_space=False)
    tokenizer = tokenizer_from_files(files, "here")
    assert tokenizer.encode("Anna") == small("sentencepiece").encode_continuation("Anna")
    assert tokenizer.decode(tokenizer.encode(" Anna")) == " Anna"


def test_merging_at_random_is_switched_off():
    """`dropout` is for training a model: with it no two encodings are equal."""
    model = json.loads(byte_level()["tokenizer.json"])["model"] | {"dropout": 0.5}
    tokenizer = tokenizer_from_files(byte_level(model=model), "here")
    text = "Anna wants tickets on Monday. " * 5
    assert tokenizer.encode(text) == small("byte level").encode(text)

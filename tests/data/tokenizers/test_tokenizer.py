import io

import numpy as np
import pytest
import sentencepiece as sentencepiece_library
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    LOSSLESS,
    NASTY,
    SMALL,
    SPECIAL,
    TEXTS,
    as_json,
    lossless,
    published_path,
    sentencepiece,
    sentencepiece_chat,
    small,
)

from ssjax.data.tokenizers.tokenizer import (
    SentencePieceTokenizer,
    open_tokenizer,
    tokenizer_from_files,
    train_tokenizer,
)
from ssjax.errors import UserError

# Any text but lone surrogates, and U+2581, which SentencePiece reads back as a space.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


@pytest.fixture
def tokenizer():
    return small("sentencepiece")


def test_special_ids_differ_and_are_not_text(tokenizer):
    assert (tokenizer.pad_id, tokenizer.prefix_ids, tokenizer.eos_ids) == (0, (2,), (3,))
    assert tokenizer.vocab_size == 360
    for text in (*NASTY, *TEXTS):
        assert not {0, 1, 2, 3} & set(tokenizer.encode(text))


@pytest.mark.parametrize("name", SMALL)
@settings(deadline=None, max_examples=30)  # machines that share cores are slow now and then
@given(text=ANY_TEXT | st.sampled_from(NASTY))
def test_round_trips(name, text):
    tokenizer = small(name)
    if name != "metaspace" or not text.startswith(" "):  # it adds no space to one that is there
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.encode_continuation(text)
    assert tokenizer.decode_continuation(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize("name", LOSSLESS)
def test_round_trips_of_published_tokenizers(name):
    tokenizer = lossless(name)
    for text in NASTY:
        assert tokenizer.decode_continuation(tokenizer.encode_continuation(text)) == text
        if not (
            name == "phi3" and "</s>" in text
        ):  # an ordinary token there, with a space after it
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", SMALL)
def test_a_continuation_gains_no_space(name):
    tokenizer = small(name)
    joined = tokenizer.encode("Why") + tokenizer.encode_continuation("Tom")
    assert tokenizer.decode(joined) == "WhyTom"
    joined = tokenizer.encode("Why") + tokenizer.encode_continuation(" Tom")
    assert tokenizer.decode(joined) == "Why Tom"


@pytest.mark.parametrize("name", ["sentencepiece", "sentencepiece chat", "llama", "metaspace"])
def test_a_space_in_front_of_a_continuation_is_the_one_that_encoding_adds(name):
    tokenizer = small(name)
    assert tokenizer.encode_continuation(" Tom") == tokenizer.encode("Tom")
    assert tokenizer.encode_continuation("Tom") != tokenizer.encode("Tom")


@pytest.mark.parametrize("name", ["byte level", "merges"])
def test_bytes_know_no_start_of_a_text(name):
    tokenizer = small(name)
    for text in NASTY:
        assert tokenizer.encode_continuation(text) == tokenizer.encode(text)


def test_the_mark_of_sentencepiece_reads_back_as_a_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_symbols_and_newlines_are_one_token(tokenizer):
    ids = tokenizer.encode("a\n#Person1#")
    assert tokenizer.decode(ids[-1:]) == "#Person1#"
    assert tokenizer.decode(ids[-2:-1]) == "\n"


@pytest.mark.parametrize("name", SMALL)
def test_decoding_skips_specials_and_ids_beyond_the_vocabulary(name):
    tokenizer = small(name)
    ids = tokenizer.encode("abc")
    assert len(ids) > 1
    skipped = [*tokenizer.prefix_ids, *tokenizer.eos_ids, tokenizer.pad_id, 10**6, -1]
    noisy = np.array([*skipped, *ids[:1], *skipped, *ids[1:], *skipped])
    assert tokenizer.decode(noisy) == "abc"


@pytest.mark.parametrize("name", SMALL)
def test_half_a_character_is_a_replacement_character(name):
    tokenizer = small(name)
    ids = tokenizer.encode("a\U0001f389")
    assert tokenizer.decode(ids[:-1]) == "a\ufffd"
    assert tokenizer.decode([*ids[:-1], *tokenizer.encode_continuation("b")]) == "a\ufffdb"


@pytest.mark.parametrize(
    "name, token, token_id",
    [
        ("sentencepiece", "</s>", 3),
        ("sentencepiece chat", "<|im_start|>", 360),
        ("sentencepiece chat", "<|im_end|>", 361),
        ("sentencepiece chat", "<s>", 2),
        ("byte level", "<|im_start|>", 1),
        ("merges", "<|endoftext|>", 0),
        ("llama", "</s>", 2),
        ("metaspace", "<s>", 1),
    ],
)
def test_strings_that_spell_special_tokens(name, token, token_id):
    tokenizer = small(name)
    text = f"a{token}b"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert token_id not in tokenizer.encode(text)
    for encode in (tokenizer.encode, tokenizer.encode_continuation):
        ids = encode(text, special=True)
        assert ids.count(token_id) == 1
        before, after = ids[: ids.index(token_id)], ids[ids.index(token_id) + 1 :]
        assert before == encode("a")
        assert after in (tokenizer.encode("b"), tokenizer.encode_continuation("b"))
        assert encode(token, special=True) == [token_id]
    # After a token a continuation gains no space either.
    assert tokenizer.encode_continuation(text, special=True) == [
        *tokenizer.encode_continuation("a"),
        token_id,
        *tokenizer.encode_continuation("b"),
    ]


def test_text_after_a_special_token_begins_as_the_files_say():
    """What they call legacy: a space in front of each piece of text between special tokens."""
    exact = small("sentencepiece chat")
    config = {"added_tokens_decoder": {"360": {"content": "<x>", "special": False}}}
    legacy = tokenizer_from_files(
        sentencepiece() | {"tokenizer_config.json": as_json(config)}, "legacy"
    )
    ids = exact.encode("a<|im_end|>b", special=True)
    assert ids == [*exact.encode("a"), 361, *exact.encode_continuation("b")]
    # An ordinary added token is found in any text.
    assert legacy.encode("a<x>b") == [*exact.encode("a"), 360, *exact.encode("b")]
    assert legacy.decode(legacy.encode("a<x>b")) == "a<x> b"


def test_added_tokens_take_white_space_along_and_longer_ones_go_first():
    added = {
        "360": {"content": "<x>", "special": True, "rstrip": True},
        "361": {"content": "<x>>", "special": True, "lstrip": True},
    }
    config = {"added_tokens_decoder": added, "legacy": False}
    files = sentencepiece() | {"tokenizer_config.json": as_json(config)}
    tokenizer = tokenizer_from_files(files, "here")
    a, b = tokenizer.encode("a"), tokenizer.encode_continuation("b")
    assert tokenizer.encode("a<x> \nb", special=True) == [*a, 360, *b]
    assert tokenizer.encode("a \n<x>>b", special=True) == [*a, 361, *b]
    assert tokenizer.encode("a<x>>b", special=True) == [*a, 361, *b]
    assert tokenizer.vocab_size == 362


def test_added_tokens_may_rename_pieces_and_leave_gaps():
    added = {
        "300": {"content": "<tool>", "special": False},
        "365": {"content": "<x>", "special": False},
    }
    files = sentencepiece() | {
        "tokenizer_config.json": as_json({"added_tokens_decoder": added}),
        "generation_config.json": as_json({"eos_token_id": [3, 362]}),
    }
    tokenizer = tokenizer_from_files(files, "here")
    assert tokenizer.encode("<tool>") == [300]
    assert tokenizer.decode([300, 365, 362, 363]) == "<tool><x>"
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (366, (3, 362))


def test_a_model_that_normalises_and_has_control_pieces():
    model = io.BytesIO()
    sentencepiece_library.SentencePieceTrainer.train(
        sentence_iterator=iter(["Tom has a cat"] * 9),
        model_writer=model,
        vocab_size=14,
        control_symbols=["[INST]"],
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer.from_bytes(model.getvalue())
    inst = 3
    assert tokenizer.encode("  Tom  has ") == tokenizer.encode("Tom has")
    assert tokenizer.decode_continuation(tokenizer.encode_continuation(" Tom")) == " Tom"
    assert tokenizer.encode("Tom[INST]a", special=True).count(inst) == 1
    assert inst not in tokenizer.encode("Tom[INST]a")
    assert tokenizer.decode([inst, *tokenizer.encode("Tom")]) == "Tom"


def test_training_is_deterministic_and_quiet(tokenizer, capfd):
    again = train_tokenizer(iter(TEXTS), 360, symbols=("#Person1#", "#Person2#"))
    assert again.files == tokenizer.files
    assert capfd.readouterr() == ("", "")


def test_long_texts_are_not_dropped():
    """SentencePiece leaves texts above 4,192 bytes out unless told otherwise."""
    tokenizer = train_tokenizer(["Zanzibar " * 1000, "a b"], 277, symbols=())
    assert len(tokenizer.encode("Zanzibar")) < len(tokenizer.encode("razibanZ"))


def test_a_vocabulary_too_large_names_the_largest_that_fits():
    with pytest.raises(UserError, match=r"5000 pieces is too large .* to (\d+) or less") as error:
        train_tokenizer(TEXTS, 5000, symbols=())
    largest = int(str(error.value).split()[-3])
    assert train_tokenizer(TEXTS, largest, symbols=()).vocab_size == largest


def test_a_vocabulary_too_small_names_the_smallest_that_fits():
    with pytest.raises(UserError, match=r"100 pieces cannot hold .* to (\d+) or more") as error:
        train_tokenizer(TEXTS, 100, symbols=())
    smallest = int(str(error.value).split()[-3])
    assert train_tokenizer(TEXTS, smallest, symbols=()).vocab_size == smallest


def test_no_text_at_all():
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer(["", ""], 300, symbols=())


@pytest.mark.parametrize("name", SMALL)
def test_save_and_open(name, tmp_path):
    tokenizer = small(name)
    directory = tmp_path / "new" / "run"
    tokenizer.save(directory)
    tokenizer.save(directory)
    assert {file.name for file in directory.iterdir()} == tokenizer.files.keys()
    opened = open_tokenizer(directory)
    assert opened.files == tokenizer.files
    for attribute in ("vocab_size", "prefix_ids", "eos_id", "eos_ids", "pad_id", "chat_template"):
        assert getattr(opened, attribute) == getattr(tokenizer, attribute)
    for text in (TEXTS[0], *SPECIAL, "a</s>b"):
        for special in (False, True):
            assert opened.encode(text, special=special) == tokenizer.encode(text, special=special)


def test_a_bare_model_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for loaded in (
        SentencePieceTokenizer.from_file(tmp_path / "tokenizer.model"),
        SentencePieceTokenizer.from_bytes(tokenizer.files["tokenizer.model"]),
    ):
        assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
        assert loaded.files == tokenizer.files


@pytest.mark.parametrize("content", [b"", b"{}", b"this is a text file\n" * 9, bytes(range(256))])
def test_a_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^tokenizer {path}: not a SentencePiece model; give a"):
        SentencePieceTokenizer.from_file(path)
    with pytest.raises(UserError, match=f"^tokenizer {path}: not a SentencePiece model; give a"):
        open_tokenizer(tmp_path)


def test_a_file_of_tiktoken(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match=r"tokenizer.model: a tiktoken file, .* give its tok"):
        open_tokenizer(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot read tokenizer .*none.model: No such file"):
        SentencePieceTokenizer.from_file(tmp_path / "none.model")


def test_a_directory_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"^no tokenizer directory .*none; give one that exists$"):
        open_tokenizer(tmp_path / "none")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=f"^no tokenizer in {tmp_path}: it needs tokenizer.json, "):
        open_tokenizer(tmp_path)


def test_llama_pads_with_eos():
    path = published_path("llama2/tokenizer.model")
    tokenizer = SentencePieceTokenizer.from_file(path)
    assert (tokenizer.prefix_ids, tokenizer.eos_id, tokenizer.pad_id) == ((1,), 2, 2)
    assert tokenizer.encode("Hello world") == [15043, 3186]
    assert tokenizer.decode([1, 15043, 3186, 2, 2]) == "Hello world"


def test_t5_begins_with_eos():
    tokenizer = SentencePieceTokenizer.from_file(published_path("t5/spiece.model"))
    assert (tokenizer.prefix_ids, tokenizer.eos_id, tokenizer.pad_id) == ((1,), 1, 0)


def test_control_pieces_of_mistral_are_special():
    tokenizer = lossless("mistral v3")
    assert tokenizer.encode("[INST] a[/INST]", special=True) == [3, *tokenizer.encode("a"), 4]
    assert not {3, 4} & set(tokenizer.encode("[INST] a[/INST]"))


def test_the_chat_tokenizer_is_the_plain_one_with_more():
    plain, chat = small("sentencepiece"), tokenizer_from_files(sentencepiece_chat(), "chat")
    for text in (*NASTY, *TEXTS):
        assert chat.encode(text) == plain.encode(text)

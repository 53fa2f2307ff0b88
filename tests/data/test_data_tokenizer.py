import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssjax.data.tokenizer import SentencePieceTokenizer, train_tokenizer
from ssjax.errors import UserError

TEXTS = [
    f"#Person{1 + i % 2}#: {name} wants {item} on {day}.\n#Person2#: Why {item}, {name}?"
    for i, name in enumerate(("Anna", "Bob", "Carla", "Dan"))
    for item in ("a red coat", "two tickets", "the new car", "some green tea")
    for day in ("Monday", "Tuesday", "Friday")
]

NASTY = [
    "", " ", "  ", "\n", "\n\n", "\t", " a", "a ", "  a  b  ", "a\nb", "\n a\n", "a\r\nb\rc",
    "\U0001f389\U0001f469\u200d\U0001f467 e\u0301 \u00e9", "\x00\x7f", "\ufeffa", "\u00a0c\u3000d",
    "<s>", "</s><pad><unk>", "<0x0A>", "日本語テキスト", "#Person1#:#Person2#", "##Person1##",
    "\ufb01 \u2460 \u00bd", "a\tb",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 360, symbols=("#Person1#", "#Person2#"))


def shared_tokenizer(name):
    """A published tokenizer beside the data directory, or a skip."""
    data = os.environ.get("SSJAX_DATA", Path(__file__).parents[3] / "shared" / "data")
    path = Path(data).parent / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"no {name} beside the data; set SSJAX_DATA to a directory that has it")
    return path


def test_special_ids_differ_and_are_not_text(tokenizer):
    specials = [tokenizer.pad_id, 1, tokenizer.bos_id, tokenizer.eos_id]
    assert specials == [0, 1, 2, 3]
    assert tokenizer.vocab_size == 360
    for text in (*NASTY, *TEXTS):
        assert not set(tokenizer.encode(text)) & set(specials)


@pytest.mark.parametrize("text", NASTY)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)  # machines that share cores are slow now and then
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_mark_of_sentencepiece_reads_back_as_a_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_prompt_and_target_ids_join_to_natural_text(tokenizer):
    ids = tokenizer.encode("Hello.\n\nSummary:") + tokenizer.encode("Anna wants tea.")
    assert tokenizer.decode(ids) == "Hello.\n\nSummary: Anna wants tea."


def test_symbols_and_newlines_are_one_token(tokenizer):
    ids = tokenizer.encode("a\n#Person1#")
    assert tokenizer.decode(ids[-1:]) == "#Person1#"
    assert tokenizer.decode(ids[-2:-1]) == "\n"


def test_decoding_skips_specials_and_ids_beyond_the_vocabulary(tokenizer):
    ids = tokenizer.encode("Anna")
    noisy = [2, *ids[:1], 0, *ids[1:], 3, tokenizer.vocab_size + 7, -1]
    assert tokenizer.decode(noisy) == "Anna"


def test_training_is_deterministic_and_quiet(tokenizer, capfd):
    again = train_tokenizer(iter(TEXTS), 360, symbols=("#Person1#", "#Person2#"))
    assert again.model_bytes == tokenizer.model_bytes
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


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "new" / "tokenizer.model"
    tokenizer.save(path)
    tokenizer.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.model"]
    for loaded in (
        SentencePieceTokenizer.from_file(path),
        SentencePieceTokenizer.from_bytes(tokenizer.model_bytes),
    ):
        assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
        assert loaded.model_bytes == tokenizer.model_bytes


@pytest.mark.parametrize("content", [b"", b"{}", b"this is a text file\n" * 9, bytes(range(256))])
def test_a_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^tokenizer {path}: not a SentencePiece model; give a"):
        SentencePieceTokenizer.from_file(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot read tokenizer .*none.model: No such file"):
        SentencePieceTokenizer.from_file(tmp_path / "none.model")


def test_llama_pads_with_eos():
    tokenizer = SentencePieceTokenizer.from_file(shared_tokenizer("llama2/tokenizer.model"))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.encode("Hello world") == [15043, 3186]
    assert tokenizer.decode([1, 15043, 3186, 2, 2]) == "Hello world"


def test_t5_begins_with_eos():
    tokenizer = SentencePieceTokenizer.from_file(shared_tokenizer("t5/spiece.model"))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 1, 0)

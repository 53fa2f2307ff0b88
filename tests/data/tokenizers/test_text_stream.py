import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import LOSSLESS, NASTY, SMALL, lossless, small

from ssjax.data.tokenizers.text_stream import TextStream

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(NASTY)


def check(tokenizer, ids, cuts):
    """Streams ids in blocks that end at the cuts."""
    stream, pieces, start = TextStream(tokenizer), [], 0
    for cut in [*sorted(cut for cut in cuts if cut < len(ids)), len(ids)]:
        pieces.append(stream.add(ids[start:cut]))
        start = cut
        # What was said stays true whatever follows.
        assert tokenizer.decode_continuation(ids).startswith("".join(pieces))
    pieces.append(stream.finish())
    assert "".join(pieces) == tokenizer.decode_continuation(ids)


@pytest.mark.parametrize("name", SMALL)
@settings(deadline=None, max_examples=40)  # machines that share cores are slow now and then
@given(text=TEXT, cuts=st.sets(st.integers(0, 40)))
def test_any_split_of_a_text_streams_to_the_text(name, text, cuts):
    tokenizer = small(name)
    check(tokenizer, tokenizer.encode_continuation(text), cuts)


@pytest.mark.parametrize("name", SMALL)
@settings(deadline=None, max_examples=40)
@given(ids=st.lists(st.integers(-1, 420), max_size=30), cuts=st.sets(st.integers(0, 30)))
def test_any_ids_stream_to_what_decoding_says(name, ids, cuts):
    """Bytes in no order, special tokens, ids beyond the vocabulary."""
    check(small(name), ids, cuts)


@pytest.mark.parametrize("name", LOSSLESS)
def test_published_tokenizers(name):
    tokenizer = lossless(name)
    ids = tokenizer.encode_continuation(" ".join(NASTY))
    for block in (1, 2, 3, 7):
        check(tokenizer, ids, range(block, len(ids), block))
    check(tokenizer, ids[::-1], range(len(ids)))


@pytest.mark.parametrize("name", SMALL)
def test_a_character_appears_with_its_last_byte(name):
    tokenizer = small(name)
    ids = tokenizer.encode_continuation("\U0001f389")
    assert len(ids) == 4
    stream = TextStream(tokenizer)
    assert [stream.add([token_id]) for token_id in ids] == ["", "", "", "\U0001f389"]
    assert stream.finish() == ""


@pytest.mark.parametrize("name", SMALL)
def test_what_remains_incomplete_is_a_replacement_character(name):
    tokenizer = small(name)
    stream = TextStream(tokenizer)
    assert stream.add(tokenizer.encode_continuation("a\U0001f389")[:-1]) == "a"
    assert stream.finish() == "\ufffd"


def test_cost_does_not_grow_with_the_text():
    """A token is looked at once."""
    tokenizer, looked_at = small("byte level"), []

    class Counting:
        def token_bytes(self, token_id):
            looked_at.append(token_id)
            return tokenizer.token_bytes(token_id)

    stream = TextStream(Counting())
    ids = tokenizer.encode("Anna wants tea. \U0001f389" * 20)
    for token_id in ids:
        stream.add([token_id])
    assert looked_at == ids

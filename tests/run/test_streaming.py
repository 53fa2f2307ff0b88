"""Text that is read while it is decoded: equal to text that is waited for."""

import numpy as np
import oracles
import pytest

from ssjax.decoding.completion import Completion
from ssjax.decoding.decoder import num_compilations
from ssjax.decoding.drafters import BestFirstDrafter, Way
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.stop_strings import cut_at_stop, settled

PROMPTS = [[3, 1, 4], [5, 9, 2, 6, 5], [1]]


@pytest.mark.parametrize("passes", [1, 3])
def test_pieces_grow_to_what_generate_returns(tiny, passes):
    """Greedy rows that end by themselves, and sampled ones; no program for a new prompt."""
    decoder = oracles.make_decoder(*tiny, eos_ids=(2, 4))
    way, settings = Way(BestFirstDrafter(6, 3), deferred=True), {"seed": 5, "log_probs": True}
    finishes = set()
    for sampling in (Sampling(), Sampling(temperature=1.3)):
        asked = settings | {"sampling": sampling, "batch_size": 1}
        wholes = decoder.generate(oracles.make_request(PROMPTS, **asked), way)
        compiled = None
        for number, (prompt, whole) in enumerate(zip(PROMPTS, wholes, strict=True)):
            request = oracles.make_request([prompt], numbers=[number], **asked)
            pieces = list(decoder.stream(request, way, passes=passes))
            assert pieces[-1] == whole
            assert len(pieces) == 1 + -(-whole.calls // passes)
            assert {piece.finish for piece in pieces[:-1]} <= {"unfinished"}
            for piece in pieces:
                count = len(piece.tokens)
                assert piece.tokens == whole.tokens[:count] and sum(piece.runs) == count
                assert piece.runs == whole.runs[: len(piece.runs)]
            finishes.add(whole.finish)
            if compiled is None:
                compiled = num_compilations()
            assert num_compilations() == compiled
    assert finishes == {"eos", "length"}


def test_settled_text_only_grows_and_ends_as_the_whole():
    """Random pieces that divide characters, random stop strings, read token by token."""
    rng = np.random.default_rng(0)
    stopped = held = 0
    alphabet = [letter.encode() for letter in "aab€é"]
    for _ in range(400):
        whole = b"".join(alphabet[i] for i in rng.integers(0, len(alphabet), 12))
        cuts = np.sort(rng.choice(np.arange(1, len(whole)), 6, replace=False)).tolist()
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        stops = ["".join(rng.choice(list("ab€é"), rng.integers(1, 5))) for _ in range(2)]

        def decode_text(ids, pieces=pieces):
            return b"".join(pieces[i] for i in ids).decode(errors="replace")

        def completion_of(count):
            return Completion(tuple(range(count)), "length", (1,) * count, (0,) * (count - 1), 0)

        cut, expected = cut_at_stop(completion_of(len(pieces)), decode_text, stops)
        shown = ""
        for count in range(1, len(cut.tokens) + 1):
            piece, found = cut_at_stop(completion_of(count), decode_text, stops)
            if piece.finish == "stop":
                stopped += 1
                assert (found, piece.tokens) == (expected, cut.tokens)
                break
            text = settled(found, stops)
            assert text.startswith(shown) and expected.startswith(text)
            held += text != found
            shown = text
    assert 100 < stopped < 400 and held > 100


def test_settled_by_hand():
    assert settled("ab\ufffd", ()) == "ab"
    assert settled("abc#", ("##",)) == "abc"
    assert settled("abc#", ("#c",)) == "abc"
    assert settled("abcab", ("abd", "babe")) == "abc"
    assert settled("abc", ("abc",)) == "abc"  # complete: for `cut_at_stop`
    assert settled("", ("a",)) == ""

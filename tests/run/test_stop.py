"""Stop strings: where text ends, whatever the tokens are, and what counts of the completion."""

import dataclasses
import itertools

import numpy as np
import oracles
import pytest

from ssjax.decoding.completion import Completion
from ssjax.decoding.drafters import PlainDrafter
from ssjax.decoding.stop_strings import cut_at_stop


def completion_of(tokens, runs=None, depth=3):
    """As a decoder gives it, all of its passes uncut."""
    runs = runs or (1,) * len(tokens)
    kept = tuple(run - 1 for run in runs[1:])
    log_probs = tuple(-0.5 * i for i in range(len(tokens)))
    return Completion(tuple(tokens), "length", tuple(runs), kept, depth, log_probs)


def decoder_of(pieces):
    """ids to text by joining pieces; pieces are bytes, so that they may split characters."""
    return lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")


def read_by_character(text, stops):
    """(end of the stop string, text) of whoever reads one character after the other."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, text[: end - max(map(len, complete))]
    return None, text


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "kept"),
    [
        (["ab", "c.d", "e"], ["."], "abc", 2),  # inside a token
        (["ab", "#", "#", "#", "e"], ["###"], "ab", 4),  # over several
        (["ab", "c\n", "\nd", "e"], ["\n\n"], "abc", 3),  # over two, ends inside the second
        (["a", "bEND", "c"], ["END", "c"], "ab", 2),  # ends with a token
        (["END", "a"], ["END"], "", 1),
        (["a", "xy", "b"], ["b", "y", "xy"], "a", 2),  # the longest of those complete at once
        (["a", "bcd", "e"], ["abcde", "c"], "ab", 2),  # complete first, begun later
        (["a", "aa", "b"], ["aab"], "a", 3),
        (["a", "b"], ["c", "ba"], "ab", None),
        (["a", "b"], [], "ab", None),
    ],
)
def test_cut_by_hand(pieces, stops, text, kept):
    completion = completion_of(range(len(pieces)))
    decode_text = decoder_of([piece.encode() for piece in pieces])
    cut, found = cut_at_stop(completion, decode_text, stops)
    assert found == text
    if kept is None:
        assert cut == completion
    else:
        assert (cut.tokens, cut.finish) == (tuple(range(kept)), "stop")
        assert cut.log_probs == completion.log_probs[:kept]
        assert (cut.runs, cut.calls) == ((1,) * kept, kept - 1)


def test_text_does_not_depend_on_token_boundaries():
    """All divisions of texts into tokens, characters of several bytes divided too."""
    for text, stops in [
        ("a—b—\nb", ["—\n", "b—b"]),
        ("ééaé", ["éaé", "aé"]),
        ("aXbXX", ["XX", "Xb"]),
    ]:
        whole, cuts = text.encode(), set()
        end, expected = read_by_character(text, stops)
        needed = len(text[:end].encode())
        for places in itertools.product([False, True], repeat=len(whole) - 1):
            bounds = [0, *(i + 1 for i, cut in enumerate(places) if cut), len(whole)]
            pieces = [whole[a:b] for a, b in itertools.pairwise(bounds)]
            completion = completion_of(range(len(pieces)))
            cut, found = cut_at_stop(completion, decoder_of(pieces), stops)
            assert found == expected
            # The fewest tokens that hold all bytes up to the end of the stop string.
            assert len(cut.tokens) == next(n for n, b in enumerate(bounds) if b >= needed)
            cuts.add(len(cut.tokens))
        assert len(cuts) >= 3


def test_a_replacement_character_of_a_divided_one_is_no_stop():
    pieces = ["é".encode()[:1], "é".encode()[1:], b"\xff", b"z"]
    cut, text = cut_at_stop(completion_of(range(4)), decoder_of(pieces), ["\ufffd"])
    assert (text, cut.tokens) == ("é", (0, 1, 2))


def test_random_texts_equal_a_reader_of_characters():
    rng = np.random.default_rng(0)
    found_any = 0
    for _ in range(500):
        pieces = ["".join(rng.choice(list("abc"), rng.integers(0, 4))) for _ in range(6)]
        stops = ["".join(rng.choice(list("abc"), rng.integers(1, 5))) for _ in range(3)]
        tokens = rng.integers(0, 6, 8).tolist()
        decode_text = decoder_of([piece.encode() for piece in pieces])
        end, expected = read_by_character(decode_text(tokens), stops)
        cut, text = cut_at_stop(completion_of(tokens), decode_text, stops)
        assert text == expected and (cut.finish == "stop") == (end is not None)
        if end is not None:
            found_any += 1
            assert len(decode_text(cut.tokens)) >= end > len(decode_text(cut.tokens[:-1]))
    assert 100 < found_any < 500


def test_passes_that_emitted_nothing_kept_nothing():
    """As where a draft had spoilt one, and where the model's output was not finite at last."""
    whole = Completion((0, 1, 2, 3, 4), "error", (1, 2, 0, 2, 0), kept=(1, 0, 1, 0), max_depth=1)
    for letter, runs, kept in (("c", (1, 2), 1), ("d", (1, 2, 0, 1), 2), ("e", (1, 2, 0, 2), 2)):
        cut, _ = cut_at_stop(whole, lambda ids: "abcde"[: len(ids)], [letter])
        assert (cut.runs, cut.calls, cut.finish) == (runs, len(runs) - 1, "stop")
        assert cut.accepted == (kept,)
    whole = Completion((0, 1, 2), "length", runs=(1, 0, 2), kept=(0, 1), max_depth=2)
    assert cut_at_stop(whole, lambda ids: "abc"[: len(ids)], ["c"])[0].accepted == (1, 0)


@pytest.mark.parametrize("drafted", [True, False])
def test_counters_are_those_of_a_run_that_ended_there(tiny, drafted):
    """A limit at the same token gives the same passes; an end of sequence after it too."""
    decoder = oracles.make_decoder(*tiny, eos_ids=(2, 4))
    prompts = oracles.ragged_prompts(17, 12)

    def generate(limits):
        return oracles.generate(decoder, prompts, drafter, max_new_tokens=limits)

    drafter = PlainDrafter()
    truth = oracles.truth_table(prompts, oracles.tokens_of(generate(12)), 20)
    if drafted:
        offset = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
        drafter = oracles.TableDrafter(truth, offset, oracles.chain(3).repeat(3, 0))
    whole, finishes = generate(12), set()
    for count in range(1, 13):
        for completion, limited in zip(whole, generate([count] * 12), strict=True):
            if len(completion.tokens) < count:
                continue
            # Token i is the i-th letter: a stop string that ends with it.
            last = "abcdefghijkl"[count - 1]
            cut, _ = cut_at_stop(completion, lambda ids: "abcdefghijkl"[: len(ids)], [last])
            assert cut == dataclasses.replace(limited, finish="stop")
            finishes.add((completion.finish, completion.runs[-1]))
    assert {finish for finish, _ in finishes} == {"eos", "length"}
    assert not drafted or {run for _, run in finishes} >= {2, 3}

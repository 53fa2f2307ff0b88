"""Rows of a batch do not touch each other; statistics against traces by hand."""

import pytest

from ssjax.decoding.completion import Completion, mark_runs
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.evaluation.comparison import Measurement

DRAFTER = BestFirstDrafter(6, 3)
LENGTHS = (1, 16, 4, 9, 2, 12, 7)
LIMITS = [20, 3, 0, 11, 1, 20, 8]


def generate(decoder, prompts, limits, batch_size, sampling=None, drafter=DRAFTER, seed=0):
    request = Request(prompts, limits, sampling or Sampling(), seed, batch_size)
    return decoder.generate(request, Way(drafter, deferred=True))


@pytest.fixture(scope="module")
def prompts(kit):
    return kit.random_prompts(11, len(LENGTHS), LENGTHS)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.9, 20, 0.95)], ids=["greedy", "sampled"]
)
def test_batch_size_does_not_change_completions(sampling, decoder, prompts):
    """Tokens, passes and statistics; mixed prompt lengths and finish times; short last batch."""
    alone = generate(decoder, prompts, LIMITS, 1, sampling)
    assert len({c.calls for c in alone}) > 3
    assert all(len(c.tokens) <= limit for c, limit in zip(alone, LIMITS, strict=True))
    for batch_size in (3, 4) if sampling.temperature == 0 else (4,):
        assert len(prompts) % batch_size
        assert generate(decoder, prompts, LIMITS, batch_size, sampling) == alone


def test_neighbours_do_not_matter(decoder, prompts):
    """Greedy rows, another order: the same completions in that order."""
    whole = generate(decoder, prompts, LIMITS, 4)
    order = [3, 6, 0, 5, 1, 4, 2]
    shuffled = generate(decoder, [prompts[i] for i in order], [LIMITS[i] for i in order], 4)
    assert shuffled == [whole[i] for i in order]


def test_short_last_batch_adds_no_completion(decoder, prompts):
    request = Request(prompts, LIMITS, Sampling(), seed=0, batch_size=4)
    batches = list(decoder.run_batches(request, Way(DRAFTER, deferred=True)))
    assert [len(completions) for completions, _ in batches] == [4, 3]
    assert all(timing.prefill > 0 and timing.decode > 0 for _, timing in batches)
    assert generate(decoder, [], 5, 4) == []


def test_batch_of_finished_rows_ends(decoder, prompts):
    completions = generate(decoder, prompts[:4], 0, 4)
    assert completions == [Completion((), "length", (0,), (), 3)] * 4


def test_bad_arguments_are_refused(decoder, prompts):
    with pytest.raises(ValueError, match="at least one token"):
        generate(decoder, [prompts[0], ()], 5, 4)
    with pytest.raises(ValueError, match="0 or more"):
        generate(decoder, prompts[:2], [3, -1], 4)


def test_statistics_of_a_trace_by_hand(endless, prompts, kit):
    """Drafts of 3 of which as many are right as planned; what follows is counted by hand."""
    prompts = prompts[:4]
    truth = [c.tokens for c in generate(endless, prompts, 12, 4, drafter=PlainDrafter())]
    plan = [[3, 0, 2], [0, 1, 3, 3], [3, 3], [1, 1, 1, 1, 1]]
    expected = [  # runs, accepted at depth 1, 2, 3
        ((1, 4, 1, 3, 3), (3, 3, 2)),  # the fourth pass has no plan: 3 right, room for 3
        ((1, 1, 2, 4, 4), (3, 2, 2)),
        ((1, 4, 4, 3), (3, 3, 3)),  # the last pass keeps 3 draft tokens and no bonus
        ((1, 2, 2, 2, 2, 2, 1), (6, 0, 0)),
    ]

    passes = [0] * 4

    def tree(row, sequence):
        done = len(sequence) - len(prompts[row])
        ahead = truth[row][done : done + 3]
        at = passes[row]
        passes[row] += 1
        right = plan[row][at] if at < len(plan[row]) else 3
        return [
            (token if depth < right else (token + 1) % kit.VOCAB, depth)
            for depth, token in enumerate(ahead)
        ]

    drafter = kit.HostDrafter(4, 3, {"tree": tree})
    completions = generate(endless, prompts, 12, 4, drafter=drafter)
    for completion, tokens, (runs, accepted) in zip(completions, truth, expected, strict=True):
        assert completion.tokens == tokens
        assert completion.runs == runs and sum(runs) == 12
        assert completion.calls == len(runs) - 1
        assert completion.accepted == accepted


def test_measurement_of_hand_made_completions():
    completions = (
        Completion((5, 6, 7, 8, 9, 3), "eos", (1, 4, 1), (3, 0), 3),
        Completion((5,), "length", (1,), (), 3),
        Completion((), "length", (0,), (), 3),
        Completion((1, 2, 3, 4), "length", (1, 2, 1), (1, 0), 3),
    )
    measured = Measurement(completions, prefill_seconds=1.0, decode_seconds=3.0)
    assert (measured.num_tokens, measured.calls) == (11, 4)
    assert measured.tokens_per_call == (4 + 1 + 2 + 1) / 4  # without the first tokens
    assert measured.acceptance_by_depth == [2 / 4, 1 / 4, 1 / 4]
    assert measured.tokens_per_second == 11 / 4.0
    assert measured.summary()["milliseconds_per_call"] == 750.0
    empty = Measurement((), 0.0, 0.0)
    assert (empty.tokens_per_call, empty.acceptance_by_depth) == (0.0, [])


def test_plain_decoding_has_one_token_per_call(endless, prompts):
    completions = tuple(generate(endless, prompts[:4], 12, 4, drafter=PlainDrafter()))
    assert Measurement(completions, 1.0, 1.0).tokens_per_call == 1.0
    assert all(c.runs == (1,) * 12 and c.accepted == () for c in completions)


def test_mark_runs():
    completion = Completion((0, 1, 2, 3, 4), "length", (1, 2, 0, 1, 1), (1, 0, 0, 0), 1)
    assert mark_runs(completion, lambda ids: "".join("abcde"[i] for i in ids)) == "[a][bc][d][e]"
    # A character of two tokens appears with the second of them.
    assert mark_runs(completion, lambda ids: "xy"[: len(ids) // 2]) == "[x][y]"
    assert mark_runs(Completion((), "length", (0,), (), 0), lambda ids: "") == ""

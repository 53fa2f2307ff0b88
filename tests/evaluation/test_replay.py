"""Known outputs replayed: acceptance and passes are those that decoding has."""

import itertools

import numpy as np
import oracles
import pytest

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter
from ssjax.decoding.tree import StaticTree
from ssjax.evaluation.replay import UNKNOWN, Events, Trace, acceptance_table, predict, replay

pytestmark = pytest.mark.stress  # a program for every drafter

EOS = (11, 12)
PROMPTS = oracles.ragged_prompts(seed=21, count=40)
LIMITS = [i % 14 for i in range(40)]  # 0 and 1 among them: outputs without any decode pass
DRAFTERS = (
    PlainDrafter(),
    BestFirstDrafter(6, 3),
    BestFirstDrafter(3, 1),  # two of three streams cut
    StaticDrafter(StaticTree.from_branching((3, 2, 1)), 3),
    StaticDrafter(StaticTree((-1, 0, 0, 2, 1), (0, 0, 4, 1, 0)), 2),
)


@pytest.fixture(scope="module")
def outputs(decoders):
    return {
        name: oracles.tokens_of(
            oracles.generate(decoder, PROMPTS, PlainDrafter(), max_new_tokens=LIMITS)
        )
        for name, decoder in decoders.items()
    }


@pytest.fixture(scope="module")
def traces(decoders, outputs):
    return {
        name: replay(decoder, PROMPTS, outputs[name], DRAFTERS)
        for name, decoder in decoders.items()
    }


NOTHING = np.zeros((0, 0))


def trace(ranks=NOTHING, accepted=NOTHING, rows=NOTHING):
    return Trace(ranks, accepted, rows, Events(NOTHING, NOTHING))


# Acceptance.


@pytest.mark.parametrize("name", ["random", "trained", "reading"])
def test_acceptance_by_stream_and_rank_equals_numpy(
    name, decoders, outputs, traces, tiny, counting, reading
):
    """Whole NumPy passes, streams sorted, every root and stream counted one by one."""
    model, params = {"random": tiny, "trained": counting[:2], "reading": reading}[name]
    hits, known = np.zeros((3, 5)), np.zeros(3)
    for prompt, output in zip(PROMPTS, outputs[name], strict=True):
        anchors = range(len(prompt) - 1, len(prompt) + len(output) - 2)
        if len(output) < 2:
            continue
        _, streams = oracles.forward(
            params,
            model.config,
            [*prompt, *output],
            anchors,
            3,
            main_reads_streams=name == "reading",
        )
        for root, stream in itertools.product(range(len(anchors)), range(3)):
            if root + 1 + stream < len(output):
                logits = streams[root, stream]
                rank = sorted(range(13), key=lambda i: -logits[i]).index(output[root + 1 + stream])
                known[stream] += 1
                if rank < 5:
                    hits[stream, rank] += 1
    table = acceptance_table(traces[name], 5)
    np.testing.assert_allclose(table, hits / known[:, None], rtol=1e-12)
    assert known.min() > 20 and table[0, 0] > 0 and (table[2] > 0).sum() >= 2


def test_acceptance_leaves_out_what_is_unknown():
    traces = [trace(ranks=np.array([[0, 2], [1, UNKNOWN]])), trace(ranks=np.zeros((0, 2)))]
    np.testing.assert_array_equal(acceptance_table(traces, 2), [[0.5, 0.5], [0, 0]])
    np.testing.assert_array_equal(acceptance_table(traces[1:], 2), np.zeros((2, 2)))


# Prediction.


@pytest.mark.parametrize(
    ("name", "index"),
    [
        *itertools.product(["random", "trained"], range(len(DRAFTERS))),
        ("reading", 1),
        ("reading", 4),
        *itertools.product(["told"], range(1, len(DRAFTERS))),
    ],
)
def test_predicted_passes_are_the_decoders(name, index, decoders, outputs, traces):
    """Every single run, with ends of sequence and limits inside accepted paths."""
    fast = oracles.generate(decoders[name], PROMPTS, DRAFTERS[index], max_new_tokens=LIMITS)
    assert oracles.tokens_of(fast) == outputs[name]
    prediction = predict(traces[name], index)
    assert prediction.runs == tuple(completion.runs[1:] for completion in fast)
    assert prediction.calls == sum(completion.calls for completion in fast)
    by_passes = sum(sum(completion.runs[1:]) for completion in fast)
    assert prediction.tokens_per_call == by_passes / prediction.calls


def test_the_prompts_meet_every_case(decoders, outputs, traces):
    """Else the test above proves little."""
    for name, found in outputs.items():
        ended = [output for output in found if output and output[-1] in EOS]
        assert ended and len(ended) < len(found) and any(len(o) < 2 for o in found), name
        accepted = np.concatenate([trace.accepted[:, 1] for trace in traces[name]])
        assert {0, 1, 2} <= set(accepted), name
    # Limits that cut a path, and an end of sequence that was drafted: the last root accepts all.
    longer = oracles.generate(decoders["trained"], PROMPTS, DRAFTERS[1], max_new_tokens=13)
    runs = predict(traces["trained"], 1).runs
    pairs = list(zip(runs, longer, strict=True))
    assert sum(short != c.runs[1 : len(short) + 1] for short, c in pairs) >= 3
    drafted = [
        t.accepted[-1, 1]
        for t, o in zip(traces["trained"], outputs["trained"], strict=True)
        if len(o) > 1 and o[-1] in EOS
    ]
    assert 1 in drafted


def test_prediction_of_a_chain_by_hand():
    """Roots 0 -> 3 -> 4 -> end; what roots 1, 2 and 5 would accept plays no part."""
    accepted = np.array([[2], [9], [9], [0], [1], [9]])
    rows = np.array([[5], [7], [7], [1], [3], [7]])
    prediction = predict([trace(accepted=accepted, rows=rows)], 0)
    assert prediction.runs == ((3, 1, 2),) and prediction.tokens_per_call == 2.0
    assert prediction.rows == (5, 1, 3)
    assert predict([], 0).tokens_per_call == 0

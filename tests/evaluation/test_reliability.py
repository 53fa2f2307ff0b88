"""Chances against what came: by construction true, and temperatures that are known."""

import numpy as np
import oracles
import pytest

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.evaluation.reliability import (
    EDGES,
    Chances,
    binned,
    fit_temperatures,
    gain_of,
    halves,
    reliability,
)
from ssjax.evaluation.replay import UNKNOWN, Events, Trace, replay

ROOTS, J, W = 4000, 3, 6
TRUE = np.array([0.6, 1.0, 2.2])  # temperature of each stream


def events_of(seed, temperatures, hide=0.2):
    """What streams say, and what comes where its chances are powers 1 / T in proportion."""
    rng = np.random.default_rng(seed)
    said = oracles.log_softmax(2 * rng.standard_normal((ROOTS, J, W + 1)))
    chances = np.exp(oracles.log_softmax(said / np.reshape(temperatures, (J, 1))))
    drawn = (rng.random((ROOTS, J, 1)) > np.cumsum(chances, axis=-1)).sum(axis=-1)
    places = np.where(rng.random((ROOTS, J)) < hide, UNKNOWN, np.minimum(drawn, W))
    return Events(said[..., :W].astype(np.float32), places.astype(np.int32))


def trace_of(events, nodes=()):
    nothing = np.zeros((ROOTS, 0))
    return Trace(nothing, nothing, nothing, events, nodes)


def test_known_temperatures_are_found():
    fit, other = (trace_of(events_of(seed, TRUE)) for seed in (0, 1))
    found = fit_temperatures([fit])
    np.testing.assert_allclose(found, TRUE, rtol=0.1)
    assert gain_of([other], found) > 0.05
    assert gain_of([other], 1 / np.array(found)) < -0.05
    assert gain_of([other], (1.0, 1.0, 1.0)) == 0
    # A grid in place of golden section finds none under which what came is likelier.
    best = gain_of([fit], found)
    for stream in range(J):
        for factor in (0.5, 0.9, 0.98, 1.02, 1.1, 2.0):
            moved = np.array(found)
            moved[stream] *= factor
            assert gain_of([fit], moved) < best + 1e-6


def test_a_stream_of_which_nothing_is_known_keeps_its_temperature():
    scores, places = events_of(2, TRUE)
    places[:, 1] = UNKNOWN
    found = fit_temperatures([trace_of(Events(scores, places))])
    assert found[1] == 1.0 and found[0] < 0.8 < 1.5 < found[2]


def test_true_chances_lie_on_the_diagonal_and_others_do_not():
    rng = np.random.default_rng(0)
    chances = rng.random(200_000) ** 3
    kept = (rng.random(chances.shape) < chances).astype(np.int32)
    true = binned(chances, kept)
    assert [each.low for each in true.bins] == list(EDGES[:-1])
    assert sum(each.nodes for each in true.bins) == 200_000
    for each in true.bins:
        assert each.low <= each.predicted <= each.high
        assert each.kept == pytest.approx(each.predicted, abs=0.02)
    assert true.error < 0.01
    loud = binned(np.sqrt(chances), kept)
    assert loud.error == pytest.approx(np.mean(np.sqrt(chances) - chances), abs=0.01)


def test_bins_by_hand():
    """What does not exist, or came after the end, counts nowhere; 1 is in the last bin."""
    found = binned(np.array([1.0, 0.4, 0.45, 0.0, 0.4]), np.array([1, 1, 0, 1, UNKNOWN]))
    assert [(each.low, each.nodes) for each in found.bins] == [(0.35, 2), (0.9, 1)]
    assert found.bins[0].predicted == pytest.approx(0.425) and found.bins[0].kept == 0.5
    assert found.error == pytest.approx(2 * 0.075 / 3)
    assert binned(np.zeros(2), np.zeros(2)).bins == ()


def test_temperatures_are_used_where_they_hold_for_others():
    nothing = binned(np.zeros(1), np.zeros(1))
    assert Chances((2.0,), nothing, nothing, 0.01, (2.0, 2.0)).used == (2.0,)
    assert Chances((2.0,), nothing, nothing, 0.01, (2.0, 1.9)).used == ()
    assert Chances((2.0,), nothing, nothing, -0.01, (2.0, 2.1)).used == ()
    assert halves([1, 2, 3]) == ([1, 3], [2]) and halves([1]) == ([1], [1])


@pytest.mark.stress
@pytest.mark.parametrize("name", ["random", "told"])
def test_replayed_nodes_and_events_are_those_of_the_outputs(name, decoders):
    """Kept nodes form the path that is accepted; events tell of every token after a candidate."""
    prompts = oracles.ragged_prompts(seed=21, count=12)
    decoder, drafter = decoders[name], BestFirstDrafter(6, 3)
    outputs = oracles.tokens_of(
        oracles.generate(decoder, prompts, PlainDrafter(), max_new_tokens=9)
    )
    seen = 0
    for trace, output in zip(
        replay(decoder, prompts, outputs, (drafter,), (drafter,)), outputs, strict=True
    ):
        nodes, events = trace.nodes[0], trace.events
        used = np.isfinite(nodes.log_chances)
        assert used.sum(axis=1).tolist() == (trace.rows[:, 0] - 1).tolist()
        assert (np.diff(nodes.log_chances[:, 1:], axis=1) <= 1e-5).all()  # best first
        kept = ((nodes.kept == 1) & used).sum(axis=1)
        np.testing.assert_array_equal(kept, trace.accepted[:, 0])
        # All 13 tokens are candidates, so every token that came has its place.
        ahead = np.arange(len(output) - 1)[:, None] + 1 + np.arange(3)
        np.testing.assert_array_equal(events.places != UNKNOWN, ahead < len(output))
        assert (events.places < 13).all()
        seen += int(kept.sum())
    assert seen > 3
    assert reliability(replay(decoder, prompts, outputs, (), (drafter,)), 0).bins

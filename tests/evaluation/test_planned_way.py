"""A tree for a chip that is not here, by hand: kept until the chip itself was calibrated."""

import json

import pytest

from ssjax.decoding import ways
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.decoding.ways import Situation
from ssjax.errors import UserError
from ssjax.evaluation import best_way, planned_way

DEVICE = "TPU v6 lite"
HERE = {"device": "cpu", "dtype": "float32", "step": 7, "num_streams": 3, "batch_size": 1}
THERE = Situation(DEVICE, "bfloat16", 7, 3)


def best_first(nodes, tokens, least=0.0):
    shape = {"kind": "best_first", "nodes": nodes, "streams": 3, "temperatures": []}
    return {"drafter": shape | {"min_node_chance": least}, "tokens_per_call": tokens}


STATIC = {"kind": "static", "parents": [-1, 0, 0], "ranks": [0, 0, 1], "streams": 1}
ENTRY = HERE | {
    "summary": "measured",
    "chosen": {"drafter": {"kind": "plain"}, "deferred": True},
    "predicted": [
        best_first(3, 2.0),
        best_first(7, 2.8),
        best_first(15, 3.0),
        best_first(7, 2.8, least=0.1),  # of several widths
        {"drafter": STATIC, "tokens_per_call": 1.5},
    ],
}


@pytest.fixture
def run(tmp_path):
    older = ENTRY | {"step": 3, "predicted": [best_first(3, 9.0)]}
    best_way.store(tmp_path, [ENTRY, older])
    return tmp_path


def kept(run, device):
    entries = json.loads((run / ways.FILE).read_text())["calibrations"]
    return [entry for entry in entries if entry["device"] == device]


def test_the_best_tree_by_planned_passes(run):
    """Of 8 nodes 2.8 tokens in 1.4, of 16 3.0 in 2.0; 4 lie between 1 and 8."""
    measured = planned_way.read_measured(run, 3, deferred=True)
    assert measured.node_counts == [4, 8, 16]
    found = planned_way.choose(measured, {1: 1.0, 8: 1.4, 16: 2.0}, batch_size=4)
    assert found.chosen.way.drafter == BestFirstDrafter(7, 3) and found.chosen.way.deferred
    rates = {c.way.drafter.num_nodes: c.tokens_per_second for c in found.candidates}
    expected = {1: 4.0, 8: 4 * 2.0, 16: 4 * 1.5, 4: 4 * 2 / (1 + 0.4 * 3 / 7)}
    assert rates == pytest.approx(expected | {3: 4 * 1.5 / (1 + 0.4 * 2 / 7)})


def test_plain_decoding_stays_where_no_tree_pays(run):
    measured = planned_way.read_measured(run, 3, deferred=False)
    found = planned_way.choose(measured, {1: 1.0, 4: 3.0, 16: 3.1}, batch_size=1)
    assert found.chosen.way.drafter == PlainDrafter() and not found.chosen.way.deferred


def test_it_is_kept_until_the_chip_is_calibrated(run):
    measured = planned_way.read_measured(run, 3, deferred=True)
    place = (DEVICE, "bfloat16", "v6e:1x1")
    for seconds, nodes in (({1: 1.0, 16: 1.1}, 16), ({1: 1.0, 8: 1.1}, 8)):
        calibration = planned_way.choose(measured, seconds, batch_size=1)
        assert "until it is calibrated there" in planned_way.keep(
            run, measured, calibration, *place
        )
        way, line = ways.find(run, THERE, batch_size=2)
        assert way.drafter.num_nodes == nodes
        assert "chosen from a plan, v6e:1x1, passes as the compiler predicts them" in line
    assert len(kept(run, DEVICE)) == 1 and len(kept(run, "cpu")) == 2
    # A plan is not measured from, and what was measured there is not replaced by a plan.
    assert planned_way.read_measured(run, 3, deferred=True).entry["device"] == "cpu"
    best_way.store(run, [ENTRY | {"device": DEVICE, "dtype": "bfloat16", "summary": "there"}])
    assert ways.find(run, THERE, batch_size=1)[1].startswith("calibrated: there")
    assert "not kept" in planned_way.keep(run, measured, calibration, *place)
    assert [entry["summary"] for entry in kept(run, DEVICE)] == ["there"]


def test_what_cannot_be_planned_gets_one_line(run, tmp_path_factory):
    measured = planned_way.read_measured(run, 3, deferred=True)
    with pytest.raises(UserError, match="trees of 4, 8, 16 nodes; give some to --nodes"):
        planned_way.choose(measured, {1: 1.0, 2: 1.0}, batch_size=1)
    with pytest.raises(UserError, match="no calibration of this model"):
        planned_way.read_measured(run, 4, deferred=True)
    with pytest.raises(UserError, match="run python -m ssjax.calibrate"):
        planned_way.read_measured(tmp_path_factory.mktemp("run"), 3, deferred=True)
    best_way.store(run, [ENTRY | {"step": 9, "predicted": [best_first(0, 2.0)]}])
    with pytest.raises(UserError, match="nodes"):
        planned_way.read_measured(run, 3, deferred=True)

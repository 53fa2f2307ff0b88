"""The curves of the picture of a calibration, and that it is one."""

import sys

import numpy as np
import pytest

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter, Way
from ssjax.decoding.tree import StaticTree
from ssjax.errors import UserError
from ssjax.evaluation import pictures
from ssjax.evaluation.best_way import Acceptance, Calibration, Candidate
from ssjax.evaluation.reliability import Chances, binned
from ssjax.evaluation.replay import Prediction

TOKENS_PER_CALL = {
    BestFirstDrafter(8, 1): 1.7,
    BestFirstDrafter(2, 1): 1.5,
    BestFirstDrafter(2, 2): 1.6,
    StaticDrafter(StaticTree((-1, 0, 0, 2), (0, 0, 1, 3)), 2): 2.0,
    BestFirstDrafter(8, 2, min_node_chance=0.1): 1.9,  # of several widths: no point of a curve
}
TRUE = binned(np.array([0.05, 0.5, 0.5]), np.array([0, 1, 0]))
CHANCES = Chances((1.0, 2.0), TRUE, binned(np.zeros(3), np.zeros(3)), 0.0, (2.0, 2.0))


def prediction(tokens):
    """Of 100 passes."""
    return Prediction(((round(100 * tokens), *[0] * 99),), ())


PREDICTED = {drafter: prediction(tokens) for drafter, tokens in TOKENS_PER_CALL.items()}
ACCEPTANCE = Acceptance(np.array([[0.5, 0.25]]), PREDICTED, CHANCES, 12, 3)


def calibration_of(*passes):
    """Plain passes of 0.02 s, and passes of (nodes, streams, deferred, seconds)."""
    plain = Candidate(Way(PlainDrafter(), True), 1.0, 0.02, 4)
    drafts = [
        Candidate(Way(BestFirstDrafter(nodes, streams), deferred), 2.0, seconds, 4)
        for nodes, streams, deferred, seconds in passes
    ]
    return Calibration(4, (plain, *drafts))


CALIBRATION = calibration_of(
    (8, 1, True, 0.08), (2, 1, True, 0.04), (2, 2, True, 0.09), (2, 1, False, 0.05)
)


def test_tokens_by_hand():
    assert pictures.tokens_by_nodes(ACCEPTANCE) == {
        "best-first, 1 stream": [(0, 1.0), (2, 1.5), (8, 1.7)],
        "best-first, 2 streams": [(0, 1.0), (2, 1.6)],
        "static": [(0, 1.0), (3, 2.0)],
    }


def test_times_by_hand():
    """The fastest with two nodes is the one of one stream."""
    assert pictures.relative_time_by_nodes(CALIBRATION) == {
        "deferred": [(0, 1.0), (2, pytest.approx(2.0)), (8, pytest.approx(4.0))],
        "beside every node": [(0, 1.0), (2, pytest.approx(2.5))],
    }


def test_chances_without_nodes_are_not_drawn():
    assert pictures.chances_by_name(CHANCES) == {"temperature 1": TRUE}


def test_it_is_a_png():
    pytest.importorskip("matplotlib")
    content = pictures.of_calibration(ACCEPTANCE, [CALIBRATION], "title")
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_without_matplotlib_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib; run pip install 'ssjax\[plot\]'"):
        pictures.require_matplotlib()

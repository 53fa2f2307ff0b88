"""Calibration: what it predicts is what decoding does, what it chooses is the best there is."""

import dataclasses
import itertools
import json
import random

import damage
import numpy as np
import oracles
import pytest

from ssjax import messages
from ssjax.config import Config
from ssjax.decoding import loop, ways
from ssjax.decoding.chances import rows_needed
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter, Way
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec
from ssjax.decoding.tree import StaticTree
from ssjax.decoding.ways import Situation
from ssjax.errors import UserError
from ssjax.evaluation import best_way, pass_time
from ssjax.evaluation.best_way import (
    MIN_NODE_CHANCES,
    Acceptance,
    Calibration,
    Candidate,
    calibrate,
    candidate_drafters,
    candidate_ways,
    mean_seconds,
    measure_acceptance,
    most_promising,
    require_streams,
    worth_timing,
)
from ssjax.evaluation.reliability import Chances, binned
from ssjax.evaluation.replay import Prediction
from ssjax.run import Run

pytestmark = pytest.mark.stress  # a program for every candidate

EOS = (11, 12)
PROMPTS = oracles.ragged_prompts(seed=21, count=40)


# The choice.


def candidates_of(*values):
    """Plain decoding at 100 tokens per second, and drafts of (nodes, tokens per second)."""
    plain = Candidate(Way(PlainDrafter(), True), 1.0, 0.02, 2)
    drafts = [
        Candidate(Way(BestFirstDrafter(nodes, 1), deferred), 2.0, 4.0 / speed, 2)
        for nodes, speed, deferred in values
    ]
    return (plain, *drafts)


def test_the_most_tokens_per_second_wins():
    candidates = candidates_of((4, 90.0, True), (2, 140.0, False), (8, 130.0, True))
    assert [round(c.tokens_per_second) for c in candidates] == [100, 90, 140, 130]
    assert Calibration(2, candidates).chosen == candidates[2]


@pytest.mark.parametrize(("speed", "drafts"), [(99.0, False), (102.9, False), (103.1, True)])
def test_plain_stays_unless_beaten_by_the_margin(speed, drafts):
    calibration = Calibration(2, candidates_of((4, speed, True), (8, 80.0, True)))
    assert calibration.chosen == calibration.candidates[drafts]
    assert calibration.best_draft == calibration.candidates[1]


def test_ties_go_to_fewer_nodes_then_to_the_first():
    candidates = candidates_of((8, 150.0, True), (4, 150.0, False), (4, 150.0, True))
    assert Calibration(2, candidates).chosen == candidates[2]


def test_candidates_by_hand():
    table = np.array([[0.5, 0.2], [0.4, 0.0], [0.0, 0.0]])
    found = candidate_drafters(table, [1, 2, 9])
    three = StaticTree((-1, 0, 0, 1, 2), (0, 0, 1, 0, 0))
    assert found[:9] == [
        BestFirstDrafter(1, 1),
        BestFirstDrafter(2, 1),
        BestFirstDrafter(2, 2),
        BestFirstDrafter(9, 1),
        BestFirstDrafter(9, 2),
        BestFirstDrafter(9, 3),
        StaticDrafter(StaticTree((-1, 0), (0, 0)), 1),
        StaticDrafter(StaticTree((-1, 0, 0), (0, 0, 1)), 1),
        StaticDrafter(three, 2),
    ]
    assert found[9:] == [BestFirstDrafter(9, 3, min_node_chance=p) for p in MIN_NODE_CHANCES]
    warm = (1.5, 1.0, 0.9, 0.8)
    nothing_accepted = candidate_drafters(np.zeros((4, 2)), [8], warm)
    assert nothing_accepted[:3] == [
        BestFirstDrafter(8, j, temperatures=warm[:j]) for j in (1, 2, 4)
    ]
    assert {drafter.temperatures for drafter in nothing_accepted[3:]} == {warm}


def test_streams_that_the_main_stream_reads_have_one_order(tiny, reading):
    drafter = BestFirstDrafter(2, 2)
    ways = candidate_ways(reading[0], [drafter])
    assert ways == [Way(PlainDrafter(), False), Way(drafter, False)]
    assert [way.deferred for way in candidate_ways(tiny[0], [drafter])] == [True, True, False]


# Pass time.


def test_a_slow_moment_meets_all_ways(decoders, monkeypatch):
    """The second of three repeats takes a hundred times as long; no median shows it."""
    ways = candidate_ways(decoders["random"].model, [BestFirstDrafter(3, 2)])
    probes, readings, now = 2 * len(ways), 0, 0.0

    def tick():
        nonlocal readings, now
        repeat = (readings // 2 - probes) // len(ways)
        now += 100.0 if repeat == 1 and readings % 2 else 1.0
        readings += 1
        return now

    monkeypatch.setattr(pass_time.time, "perf_counter", tick)
    compiled = []
    shape = pass_time.PassShape(batch_size=2, prompt_length=5, max_new_tokens=9)
    seconds = pass_time.seconds_per_pass(
        decoders["random"], ways, shape, repeats=3, on_compiled=compiled.append
    )
    assert compiled == [1, 2, 3] and readings == 2 * (probes + 3 * len(ways))
    # A reading lasts 1 s; the 1 / 4 s a pass of the probe asks for the fewest passes, 4.
    assert seconds == [0.25] * 3


def test_timed_passes_are_the_loops(decoders):
    """As many passes as asked for, every row alive in all of them, whatever it says."""
    decoder = decoders["trained"]
    spec = DecodeSpec(64, EOS, 0, Sampling(), True)
    drafter = BestFirstDrafter(3, 2)
    start = pass_time._prompted(decoder.model, decoder.params, spec, 2, 5)
    state = pass_time._ready(start.replace(done=~start.done), drafter)  # a prompt may end at once
    assert state.draft.tokens.shape == (2, 4)
    done = pass_time._passes(
        loop.decode_step, decoder.model, decoder.params, drafter, spec, state, 7
    )
    assert done.calls.tolist() == [7, 7] and not done.done.any()
    assert done.drafted.any()  # the drafts are real


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_a_pass_of_some_width_is_timed_at_that_width(decoders, rows):
    """And through the choice between widths: it is the loop's own pass that runs."""
    decoder = decoders["trained"]
    spec = DecodeSpec(64, EOS, 0, Sampling(), True)
    drafter = BestFirstDrafter(5, 2, min_node_chance=0.2)
    assert len(drafter.widths) > 1
    start = pass_time._prompted(decoder.model, decoder.params, spec, 2, 5)
    state = pass_time._ready(start, drafter, rows)
    static = (decoder.model, decoder.params, drafter, spec)
    done = pass_time._passes(pass_time._held_step, *static, state, 3)
    for each in (state, done):
        assert rows_needed(each.draft).tolist() == [rows, rows]
    assert done.calls.tolist() == [3, 3]
    # The tokens are those that the pass drafts: nothing that decoding computes is left out.
    after = loop.decode_step(*static, state)
    held = pass_time._held_step(*static, state)
    expected = np.maximum(after.draft.tokens, 0)
    np.testing.assert_array_equal(held.draft.tokens, expected)
    np.testing.assert_array_equal(held.tokens, after.tokens)


def test_larger_trees_that_promise_no_more_are_not_timed():
    def best(nodes, streams):
        return BestFirstDrafter(nodes, streams)

    def static(nodes):
        return StaticDrafter(StaticTree.from_branching((nodes,)), 1)

    promised = {
        best(2, 1): 1.5,
        best(4, 1): 1.51,  # less than 1 % more than two nodes
        best(8, 1): 1.52,  # more than 1 % over two nodes, which is what is left
        best(4, 2): 1.9,
        static(2): 1.4,
        static(4): 1.9,
        best(16, 4): 1.9,  # four static nodes promise as much
        static(8): 1.85,
    }
    assert set(worth_timing(promised)) == {best(2, 1), static(2), static(4)}
    del promised[static(4)], promised[static(8)]
    assert set(worth_timing(promised)) == {best(2, 1), best(8, 1), best(4, 2), static(2)}


def test_a_pass_is_as_wide_as_the_row_that_needs_most():
    """Against every pair of rows."""
    drafter = BestFirstDrafter(8, 2, min_node_chance=0.1)
    assert drafter.widths[-1] == 9 and drafter.widths[0] == 1
    seconds = [float(1 + width) for width in drafter.widths]
    needed = (1, 1, 3, 9, 2)

    def cost(rows):
        return next(s for w, s in zip(drafter.widths, seconds, strict=True) if w >= rows)

    prediction = Prediction(((1,) * 5,), needed)
    alone = np.mean([cost(rows) for rows in needed])
    pairs = np.mean([cost(max(pair)) for pair in itertools.product(needed, repeat=2)])
    assert mean_seconds(prediction, drafter, seconds, 1) == pytest.approx(alone)
    assert mean_seconds(prediction, drafter, seconds, 2) == pytest.approx(pairs)
    assert alone < pairs


def test_the_drafts_worth_timing_with_several_widths_are_those_that_seem_fastest():
    """Passes cost a second and one more for each draft node."""
    timed = [
        Candidate(Way(PlainDrafter(), True), 1.0, 1.0, 1),
        Candidate(Way(BestFirstDrafter(8, 2), True), 3.0, 9.0, 1),
    ]
    likely = [BestFirstDrafter(8, 2, min_node_chance=chance) for chance in (0.1, 0.2, 0.3)]
    predicted = {
        BestFirstDrafter(8, 2): Prediction(((3, 3),), (9, 9)),
        likely[0]: Prediction(((2, 2),), (1, 9)),  # 2 tokens in 5 s
        likely[1]: Prediction(((2, 2),), (1, 1)),  # 2 in 1
        likely[2]: Prediction(((2, 1),), (1, 1)),  # 1.5 in 1
    }
    acceptance = Acceptance(np.zeros((2, 2)), predicted, CHANCES, 12, 3)
    assert most_promising(acceptance, timed) == [Way(likely[1], True), Way(likely[2], True)]


# The file.

HERE = Situation(device="cpu", dtype="float32", step=400, num_streams=4)
STATIC = StaticDrafter(StaticTree((-1, 0, 0, 2), (0, 0, 1, 3)), 2)
TRUE = binned(np.array([0.5, 0.5]), np.array([1, 0]))
CHANCES = Chances((1.1, 0.9), TRUE, TRUE, 0.01, (2.0, 2.1))
ACCEPTANCE = Acceptance(
    np.array([[0.5, 0.25]]), {STATIC: Prediction(((2, 2),), (4, 4))}, CHANCES, 12, 3
)


def calibration_of(batch_size, drafter, speed=150.0, deferred=False):
    """Two candidates; above a speed of 103 the drafter is chosen."""
    plain = Candidate(Way(PlainDrafter(), True), 1.0, batch_size / 100, batch_size)
    draft = Candidate(Way(drafter, deferred), 2.0, 2.0 * batch_size / speed, batch_size)
    return Calibration(batch_size, (plain, draft))


def stored(directory, *calibrations, situation=HERE):
    best_way.store(directory, [best_way.entry_of(situation, ACCEPTANCE, c) for c in calibrations])


LIKELY = BestFirstDrafter(8, 2, temperatures=(1.25, 0.5), min_node_chance=0.1)


@pytest.mark.parametrize("drafter", [STATIC, BestFirstDrafter(8, 4), LIKELY])
@pytest.mark.parametrize("deferred", [True, False])
def test_what_is_stored_comes_back(tmp_path, drafter, deferred):
    stored(tmp_path, calibration_of(4, drafter, deferred=deferred))
    way, line = ways.find(tmp_path, HERE, 4)
    assert way == Way(drafter, deferred)
    order = "deferred" if deferred else "beside every node"
    kind = "static tree of 3" if drafter is STATIC else "best-first tree of 8"
    kind += " nodes" + " of a chance of 0.1 or more" * (drafter is LIKELY)
    assert f"calibrated: {kind}, {drafter.num_streams} streams {order} at batch" in line
    assert "1.50 times as fast" in line and "--nocalibration" in line and "\n" not in line
    [entry] = json.loads((tmp_path / "calibration.json").read_text())["calibrations"]
    assert entry["acceptance"] == [[0.5, 0.25]] and len(entry["candidates"]) == 2


def test_a_file_from_before_there_were_chances_is_read(tmp_path):
    stored(tmp_path, calibration_of(4, BestFirstDrafter(8, 4)))
    path = tmp_path / "calibration.json"
    content = json.loads(path.read_text())
    for name in ("temperatures", "min_node_chance"):
        del content["calibrations"][0]["chosen"]["drafter"][name]
    del content["calibrations"][0]["chances"]
    path.write_text(json.dumps(content))
    assert ways.find(tmp_path, HERE, 4)[0] == Way(BestFirstDrafter(8, 4), False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temperatures": [1.0]}, "1 temperatures for 2 streams"),
        ({"temperatures": [1.0, 0.0]}, "temperatures must be a tuple"),
        ({"min_node_chance": 1.0}, "min_node_chance must be a number"),
    ],
)
def test_chances_that_cannot_be_are_refused(tmp_path, change, reason):
    stored(tmp_path, calibration_of(4, LIKELY))
    path = tmp_path / "calibration.json"
    content = json.loads(path.read_text())
    content["calibrations"][0]["chosen"]["drafter"] |= change
    path.write_text(json.dumps(content))
    way, line = ways.find(tmp_path, HERE, 4)
    assert way is None and reason in line


def test_plain_comes_back_too_and_says_so(tmp_path):
    stored(tmp_path, calibration_of(1, STATIC, speed=60.0))
    way, line = ways.find(tmp_path, HERE, 1)
    assert way == Way(PlainDrafter(), True)
    assert "plain decoding at batch size 1: no draft pays here" in line and "0.60 times" in line


def test_no_file_no_line(tmp_path):
    assert ways.find(tmp_path, HERE, 1) == (None, "")


def test_the_nearest_smaller_batch_size_holds(tmp_path):
    drafters = {2: BestFirstDrafter(2, 1), 8: BestFirstDrafter(8, 1)}
    stored(tmp_path, *(calibration_of(size, drafter) for size, drafter in drafters.items()))
    found = {size: ways.find(tmp_path, HERE, size)[0] for size in (1, 2, 7, 8, 100)}
    nodes = {size: way and way.drafter.num_draft_nodes for size, way in found.items()}
    assert nodes == {1: None, 2: 2, 7: 2, 8: 8, 100: 8}
    assert "batch size 2, 8, not 1" in ways.find(tmp_path, HERE, 1)[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": 500}, "step 400, not 500"),
        ({"device": "TPU v5e"}, "device cpu, not TPU v5e"),
        ({"device": "4 x cpu"}, "device cpu, not 4 x cpu"),
        ({"dtype": "bfloat16"}, "dtype float32, not bfloat16"),
        ({"num_streams": 3}, "num streams 4, not 3"),
    ],
)
def test_a_calibration_of_something_else_is_ignored(tmp_path, change, reason):
    stored(tmp_path, calibration_of(1, STATIC))
    elsewhere = dataclasses.replace(HERE, **change)
    way, line = ways.find(tmp_path, elsewhere, 1)
    assert way is None and reason in line and "ignored" in line and "\n" not in line
    stored(tmp_path, calibration_of(1, BestFirstDrafter(3, 1)), situation=elsewhere)
    assert ways.find(tmp_path, elsewhere, 1)[0].drafter == BestFirstDrafter(3, 1)
    assert ways.find(tmp_path, HERE, 1)[0].drafter == STATIC


def test_calibrating_again_replaces(tmp_path):
    stored(tmp_path, calibration_of(1, STATIC), calibration_of(4, STATIC))
    stored(tmp_path, calibration_of(1, BestFirstDrafter(3, 1)))
    assert ways.find(tmp_path, HERE, 1)[0].drafter == BestFirstDrafter(3, 1)
    assert ways.find(tmp_path, HERE, 4)[0].drafter == STATIC
    assert len(json.loads((tmp_path / "calibration.json").read_text())["calibrations"]) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("[" * 5000, "nested too deeply"),
        ("[]", "not a JSON object"),
        ("{}", "not a calibration"),
        ('{"calibrations": 3}', "not a calibration"),
        ('{"calibrations": [{"device": "cpu"}]}', "dtype must be text, got None"),
    ],
)
def test_a_broken_file_is_ignored_and_replaced(tmp_path, content, reason):
    (tmp_path / "calibration.json").write_text(content)
    way, line = ways.find(tmp_path, HERE, 1)
    assert way is None and reason in line and "\n" not in line
    stored(tmp_path, calibration_of(1, STATIC))
    assert ways.find(tmp_path, HERE, 1)[0].drafter == STATIC


def test_a_damaged_file_is_ignored_or_still_a_way_to_decode(tmp_path):
    dice, usable = random.Random(0), 0
    path = tmp_path / "calibration.json"
    for number in range(300):
        path.unlink(missing_ok=True)
        drafter = STATIC if number % 2 else BestFirstDrafter(8, 4)
        stored(tmp_path, calibration_of(1, drafter))
        how = damage.odd_json if number % 3 else damage.odd_bytes
        path.write_bytes(how(path.read_bytes(), dice)[0])
        way, line = ways.find(tmp_path, HERE, 1)
        assert line.count("\n") == 0 and 0 < len(line) < 700
        if way is None:
            assert "ignored" in line
        elif way.drafter != PlainDrafter():
            usable += 1
            assert 0 < way.drafter.num_streams <= 4 and 1 < way.drafter.num_nodes < 1100
    assert 20 < usable < 250


# Use.


@pytest.fixture
def run(tmp_path, counting):
    """A run at step 400 of the model that counts."""
    messages._said.clear()
    model = counting[0]
    config = dataclasses.replace(Config(), streams=model.streams)
    return Run(tmp_path, 400, config, None, None, oracles.make_decoder(*counting[:2]))


def here(run):
    assert run.situation == dataclasses.replace(HERE, num_streams=3)
    return run.situation


def test_a_run_drafts_as_calibrated_unless_told_how(run, capsys):
    stored(run.workdir, calibration_of(1, STATIC), situation=here(run))
    own = Way(BestFirstDrafter(8, 3), True)
    assert run.way({"max_new_tokens": 5}, 1) == Way(STATIC, False)
    assert run.way({}, 3) == Way(STATIC, False)
    assert capsys.readouterr().err.count("calibrated: static tree") == 1  # said once
    assert run.way({}, 1, calibration=False) == own
    assert run.way({"num_nodes": 5}, 1) == Way(BestFirstDrafter(5, 3), True)
    assert run.way({"deferred": False}, 1) == Way(BestFirstDrafter(8, 3), False)
    assert run.way({"num_streams": 2}, 1) == Way(BestFirstDrafter(8, 2), True)
    static = StaticDrafter(StaticTree.from_branching((2, 1, 1)), 3)
    assert run.way({"tree": "static"}, 1) == Way(static, True)
    assert run.way({"branching": (1,)}, 1) == own
    assert run.way({"temperature": 0.5, "seed": 1}, 1) == Way(STATIC, False)
    assert capsys.readouterr().err == ""


def test_a_run_ignores_what_does_not_fit(run, capsys):
    other = dataclasses.replace(here(run), step=100)
    stored(run.workdir, calibration_of(1, STATIC), situation=other)
    assert run.way({}, 1) == Way(BestFirstDrafter(8, 3), True)
    assert "step 100, not 400" in capsys.readouterr().err


def test_measured_calibration_end_to_end(run):
    """Acceptance, times, choice and file of a real model; outputs stay those of plain decoding."""
    settings = dict(max_new_tokens=12)
    acceptance = measure_acceptance(run.decoder, PROMPTS, node_counts=[3], **settings)
    assert acceptance.num_prompts == 40 and acceptance.table.shape == (3, 13)
    calibration = calibrate(run.decoder, acceptance, batch_size=2, repeats=1, **settings)
    assert calibration.plain.is_plain and len(calibration.candidates) > 2
    assert all(c.seconds_per_pass > 0 for c in calibration.candidates)
    plain = oracles.generate(run.decoder, PROMPTS, PlainDrafter())
    draft = calibration.best_draft
    # As if drafts paid on this machine: what is stored and used is the best of them.
    fast_plain = dataclasses.replace(calibration.plain, seconds_per_pass=1e3)
    pays = dataclasses.replace(calibration, candidates=(fast_plain, *calibration.candidates[1:]))
    best_way.store(run.workdir, [best_way.entry_of(run.situation, acceptance, pays)])
    way = run.way({}, 2)
    assert way == draft.way
    fast = oracles.generate(run.decoder, PROMPTS, way.drafter, deferred=way.deferred)
    assert oracles.tokens_of(fast) == oracles.tokens_of(plain)
    tokens = sum(sum(completion.runs[1:]) for completion in fast)
    assert draft.tokens_per_call == tokens / sum(completion.calls for completion in fast) > 1


def test_nothing_to_calibrate_is_one_line(tiny):
    require_streams(tiny[0], "RUN")
    with pytest.raises(UserError, match="RUN has no streams: it decodes plainly"):
        require_streams(oracles.make_model(num_streams=0), "RUN")
    model, params = tiny
    decoder = oracles.make_decoder(model, params, eos_ids=tuple(range(13)))  # all tokens end
    with pytest.raises(UserError, match="end with their first token"):
        measure_acceptance(decoder, PROMPTS, node_counts=[2], max_new_tokens=8)

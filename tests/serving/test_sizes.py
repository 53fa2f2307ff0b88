"""Which program runs passes, by the number of busy slots."""

import dataclasses
import itertools
import json
import random

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter, Way
from ssjax.decoding.tree import StaticTree
from ssjax.decoding.ways import Situation, drafter_to_dict, known, way_to_dict
from ssjax.serving.sizes import Size, make_sizes, plan, row_counts

PLAIN = PlainDrafter()
WHOLE, HALF, SMALL = (BestFirstDrafter(n, 3) for n in (8, 4, 2))
STATIC = StaticDrafter(StaticTree((-1, 0, 1), (0, 0, 0)), 2)
WAY = Way(WHOLE, deferred=False)
TOKENS = {PLAIN: 1.0, WHOLE: 3.0, HALF: 2.5, SMALL: 1.9, STATIC: 2.6}


def test_numbers_of_rows():
    found = [row_counts(slots) for slots in (1, 2, 4, 5, 16, 64)]
    assert found == [[1], [1, 2], [1, 4], [1, 4, 5], [1, 4, 16], [1, 4, 16, 64]]


def test_the_plan_is_the_best_of_all_plans():
    """Brute force: every assignment of sizes to loads, valued by its sum of tokens a second."""
    rng = random.Random(0)
    for _ in range(40):
        slots = rng.randint(1, 4)
        ways = [Way(drafter, True) for drafter in (PLAIN, SMALL, WHOLE)]
        rows = [slots, *(rng.randint(1, slots) for _ in range(4))]
        sizes = [
            Size(each, rng.choice(ways), rng.uniform(1, 4), rng.uniform(0.1, 2)) for each in rows
        ]
        loads = range(1, slots + 1)

        def value(chosen, loads=loads):
            if any(size.rows < busy for size, busy in zip(chosen, loads, strict=True)):
                return -1.0
            each = zip(chosen, loads, strict=True)
            return sum(busy * size.tokens_per_call / size.seconds for size, busy in each)

        best = max(map(value, itertools.product(sizes, repeat=slots)))
        assert value(plan(sizes, slots)) == best


def test_where_drafts_do_not_pay_for_all_slots_there_are_none():
    """The figures of the module's docstring; of equals the one with fewer nodes."""
    plain, whole = Way(PLAIN, True), Way(WHOLE, True)
    sizes = [
        Size(1, whole, 3.2, 0.029),
        Size(1, plain, 1.0, 0.0145),
        Size(4, whole, 3.2, 0.071),
        Size(4, plain, 1.0, 0.03),
        Size(16, whole, 3.2, 0.29),
        Size(16, plain, 1.0, 0.081),
    ]
    found = [(size.rows, size.num_draft_nodes) for size in plan(sizes, 16)]
    assert found == [(1, 8), *[(4, 8)] * 3, *[(16, 0)] * 12]
    tied = [Size(2, whole, 2.0, 2.0), Size(2, plain, 1.0, 1.0)]
    assert plan(tied, 2) == (tied[1], tied[1])


def test_sizes_to_choose_from():
    small = Way(SMALL, True)
    found = make_sizes(WAY, [1, 4, 16], {4: small}, TOKENS)
    assert [(size.rows, size.way.drafter, size.tokens_per_call) for size in found] == [
        *((1, drafter, TOKENS[drafter]) for drafter in (WHOLE, STATIC, PLAIN)),
        (4, SMALL, 1.9),
        *((16, drafter, TOKENS[drafter]) for drafter in (WHOLE, STATIC, PLAIN)),
    ]
    assert all(size.way.deferred == (size.rows == 4) for size in found)
    # Nothing known of the drafter, or nothing drafted: nothing to choose.
    assert make_sizes(WAY, [3], {}, {PLAIN: 1.0}) == [Size(3, WAY, 1.0)]
    plain = Way(PLAIN, True)
    assert make_sizes(plain, [3], {}, TOKENS) == [Size(3, plain, 1.0)]


def test_what_calibrations_know(tmp_path):
    """Of another device the tokens alone, of another step nothing; a damaged file is none."""
    here = Situation("cpu", "float32", 7, 3)

    def entry(batch_size, drafter, tokens, **changes):
        own = dataclasses.asdict(here) | {"batch_size": batch_size, "summary": ""} | changes
        values = way_to_dict(Way(drafter, True)) | {"tokens_per_call": tokens}
        predicted = [{"drafter": drafter_to_dict(drafter), "tokens_per_call": tokens}]
        return own | {"chosen": values, "candidates": [values], "predicted": predicted}

    entries = [
        entry(1, WHOLE, 3.0),
        entry(4, SMALL, 1.9),
        entry(1, STATIC, 2.6, device="TPU v5"),
        entry(2, HALF, 9.0, step=8),
    ]
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"calibrations": entries}))
    chosen, tokens = known(tmp_path, here)
    assert chosen == {1: Way(WHOLE, True), 4: Way(SMALL, True)}
    assert tokens == {PLAIN: 1.0, WHOLE: 3.0, SMALL: 1.9, STATIC: 2.6}
    entries[0]["candidates"][0]["tokens_per_call"] = "many"
    path.write_text(json.dumps({"calibrations": entries}))
    assert known(tmp_path, here) == ({}, {})
    assert known(tmp_path / "nowhere", here) == ({}, {PLAIN: 1.0})

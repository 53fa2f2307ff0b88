"""Which records make up a batch: orders, buckets, packed rows."""

import itertools

import numpy as np
import pytest
import small_tokenizers

from ssjax.data import pipeline
from ssjax.data.order import Buckets, OneARow, Packed
from ssjax.data.pipeline import BatchLayout
from ssjax.data.tasks import PAIRS
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files

LENGTHS = np.random.default_rng(0).integers(4, 60, 300)
TARGETS = np.minimum(LENGTHS - 1, np.random.default_rng(1).integers(1, 12, 300))
WIDTHS = (16, 32, 60)


def records(plan, num_batches, first=0):
    plans = [plan(index) for index in range(first, first + num_batches)]
    return list(itertools.chain.from_iterable(row for p in plans for row in p.rows))


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: OneARow(300, 4, seed, 60),
        lambda seed: Buckets(LENGTHS, 4, seed, WIDTHS),
        lambda seed: Packed(LENGTHS, TARGETS, 4, seed, 60, 20),
    ],
    ids=["one a row", "buckets", "packed"],
)
def test_every_record_once_an_epoch_and_any_batch_at_any_time(make):
    plan = make(3)
    in_order = [plan(index) for index in range(80)]
    assert make(3)(57) == in_order[57] and plan(5) == in_order[5]
    assert make(4)(0) != in_order[0]
    seen = records(make(3), 80)
    counts = np.bincount(seen, minlength=300)
    # Buckets draw an epoch and a bit more at a time: 32 batches of 4.
    assert counts[:300].min() >= len(seen) // 300 - 1 and counts.max() <= len(seen) // 300 + 1


@pytest.mark.parametrize("layout", ["one a row", "buckets", "packed"])
def test_a_mixture_is_drawn_by_weight(layout):
    """Counted by part, over any stretch of records and in every order of rows."""
    parts = [(200, 1.0), (40, 2.0), (60, 0.5)]
    make = {
        "one a row": lambda seed: OneARow(300, 4, seed, 60, parts),
        "buckets": lambda seed: Buckets(LENGTHS, 4, seed, WIDTHS, parts),
        "packed": lambda seed: Packed(LENGTHS, TARGETS, 4, seed, 60, 20, parts),
    }[layout]
    drawn = np.array(records(make(3), 64))
    size = 4 * 32 if layout == "buckets" else 7  # a window is sorted by length
    for first in range(0, len(drawn) - size, size):
        counts = np.histogram(drawn[first : first + size], [0, 200, 240, 300])[0]
        assert np.abs(counts - size * np.array([2, 4, 1]) / 7).max() <= 2, (first, counts)
    own = drawn[(drawn >= 200) & (drawn < 240)]
    if layout != "buckets":  # each part goes through all its records before one comes again
        assert sorted(own[:40]) == list(range(200, 240)) and sorted(own[40:80]) == sorted(own[:40])
        assert own[:40].tolist() != own[40:80].tolist()
    plan = make(3)
    assert plan(50) == make(3)(50) and make(4)(0) != plan(0)


def test_the_first_epoch_has_every_record():
    assert sorted(records(OneARow(300, 4, 0, 60), 75)) == list(range(300))
    first, second = records(OneARow(300, 4, 0, 60), 75), records(OneARow(300, 4, 0, 60), 75, 75)
    assert first != second and sorted(second) == list(range(300))


def test_buckets_are_as_narrow_as_can_be_and_save_padding():
    plan = Buckets(LENGTHS, 4, 0, WIDTHS)
    batches = [plan(index) for index in range(64)]
    for batch in batches:
        longest = max(LENGTHS[record] for (record,) in batch.rows)
        assert batch.width == min(width for width in WIDTHS if width >= longest)
    assert {batch.width for batch in batches} == set(WIDTHS)
    assert sum(batch.width for batch in batches) < 0.75 * 64 * 60
    widths = [batch.width for batch in batches]
    assert widths != sorted(widths)  # lengths stay mixed over time


def test_packed_rows_are_full_and_within_both_limits():
    plan = Packed(LENGTHS, TARGETS, 4, 0, 60, 20)
    rows = [row for index in range(40) for row in plan(index).rows]
    following = rows[1:] + [None]
    for row, after in zip(rows, following, strict=True):
        tokens, targets = LENGTHS[list(row)].sum(), TARGETS[list(row)].sum()
        assert tokens <= 60 and targets <= 20
        if after:  # one more would not have fitted
            more = after[0]
            assert tokens + LENGTHS[more] > 60 or targets + TARGETS[more] > 20
    assert max(map(len, rows)) >= 3


def test_packed_batches_hold_whole_examples():
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "t")
    source = [{"prompt": "x" * (i % 7 + 1), "response": "y" * (i % 3)} for i in range(30)]
    layout = BatchLayout(2, 12, 8, packing=True)
    batches = pipeline.train_batches(source, PAIRS, tokenizer, layout, seed=0)
    batch, seen = batches[1], 0
    for tokens, segments, is_target in zip(*batch.values(), strict=True):
        assert (np.diff(segments[segments > 0]) >= 0).all() and segments.max() > 1
        assert (tokens[segments == 0] == tokenizer.pad_id).all() and len(tokens) == 20
        for number in range(1, segments.max() + 1):
            own = segments == number
            prompt, target = tokens[own & ~is_target].tolist(), tokens[own & is_target].tolist()
            assert any(
                (prompt, target) == pipeline.encode_example(r, PAIRS, tokenizer, 12, 8)
                for r in source
            )
            seen += 1
    assert seen > 3


@pytest.mark.parametrize("num_epochs", [0.3, 1, 2.5])
@pytest.mark.parametrize("layout", [{}, {"packing": True}, {"length_buckets": (9,)}])
def test_epochs_are_counted_in_records(layout, num_epochs):
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "t")
    source = [{"prompt": "x" * (i % 7 + 1), "response": "y" * (i % 3)} for i in range(30)]
    made = {"seed": 0}, (source, PAIRS, tokenizer, BatchLayout(2, 12, 8, **layout))
    num_steps = pipeline.num_steps(*made[1], **made[0], num_epochs=num_epochs)
    batches = pipeline.train_batches(*made[1], **made[0])
    rows = [batches[i]["segments"] for i in range(num_steps)]
    held = [int(row.max(axis=1).sum()) for row in rows]
    assert sum(held[:-1]) < 30 * num_epochs <= sum(held)


def test_only_the_rows_of_a_process_are_read():
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "t")
    read = []

    class Source(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    source = Source({"prompt": f"p{i} ", "response": f"r{i}"} for i in range(12))
    layout = BatchLayout(4, 12, 8)
    whole = pipeline.train_batches(source, PAIRS, tokenizer, layout, seed=2)[2]
    read.clear()
    rows = np.array([1, 3])
    part = pipeline.train_batches(source, PAIRS, tokenizer, layout, seed=2, rows=rows)[2]
    assert len(read) == 2
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][[1, 3]])
    layout = BatchLayout(8, 12, 8)
    evaluation = pipeline.eval_batches(source, PAIRS, tokenizer, layout, rows=[7])
    assert not evaluation[1]["is_target"].any()  # row 15 of 12 records
    assert evaluation[0]["is_target"].shape == (1, 20)

"""Drafters that are always right, always wrong or arbitrary change the passes, not a token."""

import numpy as np
import oracles
import pytest
from oracles import TableDrafter, chain, generate, tokens_of, truth_table

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter


@pytest.fixture(scope="module")
def few(tiny):
    """24 prompts, their plain output without any end of sequence, and the decoder."""
    decoder = oracles.make_decoder(*tiny)
    prompts = oracles.ragged_prompts(5, 24)
    return decoder, prompts, tokens_of(generate(decoder, prompts, PlainDrafter()))


def test_always_right_drafter_needs_the_fewest_calls(few):
    decoder, prompts, outputs = few
    truth = truth_table(prompts, outputs, 20)
    drafter = TableDrafter(truth, np.zeros((1, 5), np.int32), chain(4))
    limits = [1 + i % 12 for i in range(24)]
    for completion, output, limit in zip(
        generate(decoder, prompts, drafter, max_new_tokens=limits), outputs, limits, strict=True
    ):
        assert completion.tokens == output[:limit]
        assert completion.calls == -(-(limit - 1) // 5)
        full, rest = divmod(limit - 1, 5)
        assert completion.runs == (1,) + (5,) * full + ((rest,) if rest else ())
        # A last run of `rest` tokens keeps nodes at depths 1..min(4, rest).
        assert completion.accepted == tuple(full + (d <= rest) for d in range(1, 5))


def test_always_wrong_drafter_changes_nothing(few):
    decoder, prompts, outputs = few
    truth = truth_table(prompts, outputs, 20)
    drafter = TableDrafter(truth, np.ones((1, 5), np.int32), chain(4))
    completions = generate(decoder, prompts, drafter)
    assert tokens_of(completions) == outputs
    for completion in completions:
        assert completion.runs == (1,) * 12 and completion.accepted == (0,) * 4


def test_adversarial_trees_change_nothing(few):
    """Random shapes, right tokens mixed in, duplicate siblings, unused nodes with token 0."""
    decoder, prompts, outputs = few
    rng = np.random.default_rng(7)
    parents = np.full((17, 9), -1, np.int32)
    for variant in range(17):
        for node in range(1, 9):
            candidates = [k for k in range(node) if k == 0 or parents[variant, k] >= 0]
            parents[variant, node] = -1 if rng.random() < 0.2 else rng.choice(candidates)
    offset = rng.choice([0, 0, 1, 2, 12], parents.shape).astype(np.int32)
    drafter = TableDrafter(truth_table(prompts, outputs, 20), offset, parents)
    assert drafter.max_depth >= 4
    completions = generate(decoder, prompts, drafter)
    assert tokens_of(completions) == outputs
    assert {1, 2, 3} <= {run for completion in completions for run in completion.runs[1:]}


def test_unused_nodes_never_match_token_zero(few, tiny):
    """Unused nodes carry token 0; where the model draws 0 they must not be accepted."""
    decoder, prompts, outputs = few
    assert sum(output.count(0) for output in outputs) > 5, "no token 0 in the outputs"
    parents = np.full((1, 5), -1, np.int32)
    drafter = TableDrafter(truth_table(prompts, outputs, 20), np.zeros((1, 5), np.int32), parents)
    object.__setattr__(drafter, "__class__", _Deep)
    completions = generate(decoder, prompts, drafter)
    assert tokens_of(completions) == outputs
    assert all(completion.runs == (1,) * 12 for completion in completions)


class _Deep(TableDrafter):
    """Declares a depth of 4 although all its nodes are unused."""

    max_depth = 4


@pytest.mark.stress
@pytest.mark.parametrize(
    "changes",
    [{"variation": "rotation", "rotation_length": 0}, {"init_rank": 2}],
    ids=["rotation", "map"],
)
def test_variants_of_streams_learn_and_draft(changes):
    """Trained on counting they name what comes later; random or trained, the tokens are plain's."""
    model, trained, metrics = oracles.train_to_count(steps=150, **changes)
    np.testing.assert_array_equal(metrics.sums.correct[1:], metrics.sums.weight[1:])
    some, begun = oracles.ragged_prompts(5, 40), [[start, start + 1] for start in range(10)]
    for params in (oracles.random_params(model, seed=0), trained):
        decoder = oracles.make_decoder(model, params)
        plain = generate(decoder, some + begun, PlainDrafter(), max_new_tokens=9)
        for deferred in (True, False):
            drafter = BestFirstDrafter(3, 3)
            found = generate(decoder, some + begun, drafter, deferred=deferred, max_new_tokens=9)
            assert tokens_of(found) == tokens_of(plain)
    assert [completion.runs for completion in found[len(some) :]] == [(1, 4, 4)] * 10

"""Speculative output equals plain output, token for token, whatever is drafted."""

import numpy as np
import oracles
import pytest
from oracles import TableDrafter, chain, generate, tokens_of, truth_table

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter
from ssjax.decoding.tree import StaticTree

NUM_PROMPTS, BATCH, NEW = 300, 128, 12
EOS = (11, 12)


@pytest.fixture(scope="module")
def prompts():
    """Lengths 1 to 8 (the bucket); the pad id 0 is an ordinary token in them."""
    prompts = oracles.ragged_prompts(3, NUM_PROMPTS)
    assert {len(p) for p in prompts} == set(range(1, 9))
    assert any(0 in p for p in prompts) and any(p[0] == 0 for p in prompts)
    return prompts


@pytest.fixture(scope="module")
def decoders(tiny, counting):
    """Random weights (drafts mostly fail) and trained weights (drafts mostly hold)."""
    return {
        "random": oracles.make_decoder(*tiny, eos_ids=EOS),
        "trained": oracles.make_decoder(*counting[:2], eos_ids=EOS),
    }


@pytest.fixture(scope="module")
def plain(decoders, prompts):
    """Plain decoding of all prompts by both decoders."""
    return {
        name: generate(decoder, prompts, PlainDrafter(), batch_size=BATCH, max_new_tokens=NEW)
        for name, decoder in decoders.items()
    }


@pytest.mark.parametrize("name", ["random", "trained"])
def test_plain_equals_numpy_greedy_without_cache(decoders, plain, prompts, name, tiny, counting):
    model, params = tiny if name == "random" else counting[:2]
    for prompt, completion in list(zip(prompts, plain[name], strict=True))[:40]:
        assert completion.tokens == oracles.greedy(params, model.config, prompt, NEW, EOS)


@pytest.mark.parametrize(
    "drafter, deferred",
    [
        (BestFirstDrafter(2, 1), True),  # two of three streams cut at inference
        (BestFirstDrafter(6, 3), True),
        (BestFirstDrafter(6, 3), False),
        (BestFirstDrafter(40, 3), True),  # more nodes than a level can hold
        (StaticDrafter(StaticTree.from_branching(()), 1), True),  # the root alone
        (StaticDrafter(StaticTree.from_branching((1, 1, 1)), 3), False),
        (StaticDrafter(StaticTree.from_branching((15, 2)), 2), True),  # wider than the vocabulary
    ],
    ids=lambda x: getattr(x, "__class__", type(x)).__name__ if not isinstance(x, bool) else str(x),
)
def test_drafter_does_not_change_tokens(decoders, plain, prompts, drafter, deferred):
    for name, decoder in decoders.items():
        drafted = generate(decoder, prompts, drafter, deferred=deferred, batch_size=BATCH,
                           max_new_tokens=NEW)  # fmt: skip
        assert tokens_of(drafted) == tokens_of(plain[name]), name
        for completion in drafted:
            assert sum(completion.runs) == len(completion.tokens)
            assert len(completion.runs) == completion.calls + 1
        if drafter.max_depth:
            runs = {run for completion in drafted for run in completion.runs[1:-1]}
            # None, some and all of a path accepted, else the test proves little. A tree with
            # the whole vocabulary at depth 1 cannot accept none.
            deepest = drafter.max_depth
            covers = isinstance(drafter, StaticDrafter) and max(drafter.tree.ranks) >= 12
            assert {1 + covers, 1 + deepest} <= runs and (deepest < 2 or 2 in runs)


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
def test_variants_of_streams_learn_and_draft(prompts, changes):
    """Trained on counting they name what comes later; random or trained, the tokens are plain's."""
    model, trained, metrics = oracles.train_to_count(steps=150, **changes)
    np.testing.assert_array_equal(metrics.sums.correct[1:], metrics.sums.weight[1:])
    some, begun = prompts[:40], [[start, start + 1] for start in range(10)]
    for params in (oracles.random_params(model, seed=0), trained):
        decoder = oracles.make_decoder(model, params)
        plain = generate(decoder, some + begun, PlainDrafter(), max_new_tokens=9)
        for deferred in (True, False):
            drafter = BestFirstDrafter(3, 3)
            found = generate(decoder, some + begun, drafter, deferred=deferred, max_new_tokens=9)
            assert tokens_of(found) == tokens_of(plain)
    assert [completion.runs for completion in found[len(some) :]] == [(1, 4, 4)] * 10

"""Drafts on given text against drafts on the model's own: the same passes where the text is."""

import types

import numpy as np
import oracles
import pytest

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter
from ssjax.decoding.tree import StaticTree
from ssjax.evaluation.teacher_forcing import (
    Passes,
    can_replay,
    decoded_passes,
    forced_passes,
    lines,
)

DRAFTER = StaticDrafter(StaticTree.from_branching((1, 1, 1)), 3)
PROMPTS = oracles.ragged_prompts(seed=21, count=24)
LIMITS = [i % 14 for i in range(24)]  # 0 and 1 among them: outputs without any decode pass


def run_of(decoder):
    return types.SimpleNamespace(decoder=decoder)


def assert_equal(passes, expected):
    for name in ("context", "runs", "kept"):
        np.testing.assert_array_equal(getattr(passes, name), getattr(expected, name), name)
    assert passes.max_depth == expected.max_depth


@pytest.fixture(scope="module")
def decoder(counting):
    return oracles.make_decoder(*counting[:2], eos_ids=(11, 12))


def test_on_its_own_text_both_are_the_same_passes(decoder):
    """With limits and ends of sequence inside accepted paths."""
    completions = oracles.generate(decoder, PROMPTS, DRAFTER, max_new_tokens=LIMITS)
    own = decoded_passes(PROMPTS, completions)
    texts = oracles.tokens_of(completions)
    assert_equal(forced_passes(run_of(decoder), PROMPTS, texts, DRAFTER), own)
    assert len(own.runs) == sum(completion.calls for completion in completions) > 30
    assert {0, 1, 2, 3} == set(own.kept)


def test_on_given_text_acceptance_equals_numpy(decoder, counting):
    """Answers that count only in part, so that drafts hold and fail; whole passes in NumPy."""
    model, params = counting[:2]
    rng = np.random.default_rng(3)
    texts, context, runs, kept = [], [], [], []
    for prompt in PROMPTS:
        steps = rng.choice([1, 1, 1, 4], size=rng.integers(1, 12))
        text = [int(token) for token in (prompt[-1] + np.cumsum(steps)) % 13]
        texts.append(text)
        tokens, root = [*prompt, *text], 0
        while root < len(text) - 1:
            _, streams = oracles.forward(params, model.config, tokens, [len(prompt) + root - 1], 3)
            drafts, follows = streams[0].argmax(axis=-1), text[root + 1 :]
            hold = 0
            while hold < min(3, len(follows)) and drafts[hold] == follows[hold]:
                hold += 1
            context.append(len(prompt) + root + 1)
            kept.append(hold)
            runs.append(min(hold + 1, len(follows)))
            root += runs[-1]
    found = forced_passes(run_of(decoder), PROMPTS, texts, DRAFTER)
    assert_equal(found, Passes(np.array(context), np.array(runs), np.array(kept), 3))
    assert {0, 1, 2, 3} == set(kept)


def test_summary_by_hand():
    passes = Passes(np.array([3, 4, 9]), np.array([2, 1, 3]), np.array([1, 0, 3]), 3)
    assert passes.summary() == {
        "passes": 3,
        "tokens_per_call": 2.0,
        "acceptance_by_depth": [2 / 3, 1 / 3, 1 / 3],
    }
    part = passes.of_context(4, 7).summary()
    assert (part["passes"], part["tokens_per_call"]) == (1, 1.0)
    assert passes.of_context(16, 31).summary()["tokens_per_call"] == 0.0


def test_two_lines():
    forced = {"tokens_per_call": 1.5, "acceptance_by_depth": [0.5, 0.25]}
    own = {"tokens_per_call": 2.0, "acceptance_by_depth": [0.75, 0.5]}
    both = {"teacher_forced": forced, "decoded": own}
    parts = [{"from": 8, "to": 15, **both}]
    first, second = lines({"prompts": 4, **both, "by_context": parts})
    assert first.endswith(
        "4 validation prompts: 1.50 / 2.00 tokens per call, acceptance by depth 0.50 / 0.75, "
        "0.25 / 0.50"
    )
    assert second == "tokens per call by tokens of context: 8 to 15: 1.50 / 2.00"


@pytest.mark.parametrize(
    ("drafter", "can"),
    [
        (BestFirstDrafter(4, 3), True),
        (BestFirstDrafter(4, 0, num_heads=3), False),
        (BestFirstDrafter(4, 3, kept_nodes=2), False),
        (PlainDrafter(), False),
    ],
)
def test_only_what_a_replay_does_is_compared(drafter, can):
    assert can_replay(drafter) == can

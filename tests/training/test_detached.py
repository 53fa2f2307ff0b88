"""The detached mode: a fine-tune that streams cannot touch, and streams trained beside it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import AdaptationConfig, LossConfig, OptimizerConfig
from ssjax.models import lora
from ssjax.models.execution import Execution
from ssjax.models.lora import is_new, is_of_main_rows
from ssjax.models.parameters import flatten, merge, split
from ssjax.training import losses
from ssjax.training.optimizer import make_optimizer
from ssjax.training.start import initial_params
from ssjax.training.step import init_state, make_train_step

DETACHED = AdaptationConfig("detached", rank=2, alpha=6.0)
# The norms of both gradients lie far above it.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, clip_norm=0.05)
DRAFTS = {"exit_rank": 2, "init_rank": 2, "parent_rank": 2}
FORMS = {
    "pre_norm": DRAFTS,
    "rotation": DRAFTS | {"variation": "rotation", "rotation_length": 1},
    "parallel": DRAFTS | {"block": "parallel", "norm": "layer", "num_layers": 2},
    "sandwich": DRAFTS | {"block": "sandwich", "window": 3, "local_layers": (0, 2)},
    "no trunk": DRAFTS | {"num_stream_layers": 3, "query_key_norm": True},
    "medusa": {"num_streams": 0, "medusa_heads": 3, "parent_rank": 2},
}
WAYS = {
    "scanned": {},
    "unrolled": {"scan": False},
    "accumulated": {"accumulation": 2},
    "again": {"remat": "full"},
    "dropped": {"dropout": 0.4},
}
CELLS = [(form, "scanned") for form in FORMS] + [("pre_norm", way) for way in WAYS]
STRESS = {"rotation", "sandwich", "no trunk", "unrolled", "dropped"}


def make_batch(seed=4):
    rng = np.random.default_rng(seed)
    return oracles.batch_of(rng.integers(0, 13, (4, 8)), [3, 2, 3, 1], [8, 6, 5, 3])


def of_drafts(path):
    return is_new(path) and not is_of_main_rows(path)


def make_step(model, accumulation):
    optimizer = make_optimizer(OPTIMIZER, 8, model.adaptation)
    step = make_train_step(
        model, optimizer, LossConfig(1.0, 1.0), num_anchors=5, accumulation=accumulation
    )
    return step, optimizer


@pytest.mark.parametrize(
    ("form", "way"),
    [
        pytest.param(*cell, marks=[pytest.mark.stress] if STRESS & set(cell) else [])
        for cell in dict.fromkeys(CELLS)
    ],
)
def test_no_bit_of_the_fine_tunes_update_depends_on_what_drafts(form, way, monkeypatch):
    """One compiled program; stream parameters, then stream targets with their weights perturbed."""
    changes = dict(WAYS[way])
    accumulation, remat = changes.pop("accumulation", 1), changes.pop("remat", "none")
    adaptation = dataclasses.replace(DETACHED, dropout=changes.pop("dropout", 0.0))
    model = oracles.make_model(adaptation=adaptation, **changes, **FORMS[form])
    model = model.clone(execution=Execution(remat=remat))
    params, other = (oracles.random_params(model, seed, table_scale=0.5) for seed in (1, 2))
    if not model.scan:
        params, other = oracles.unstack_layers(params), oracles.unstack_layers(other)
    trainable, frozen = lora.split_trainable(params, adaptation)
    main, drafts = split(trainable, is_of_main_rows)
    others = split(other, of_drafts)[0]
    step, optimizer = make_step(model, accumulation)
    true_targets = losses.anchor_targets

    @jax.jit
    def update(trainable, shift):
        def shifted(*arguments):
            anchors, targets, weights = true_targets(*arguments)
            ahead = (targets[..., 1:] + shift) % 13
            fewer = weights[..., 1:] * (1 - shift / 16)
            return (
                anchors,
                targets.at[..., 1:].set(ahead),
                weights.at[..., 1:].set(fewer),
            )

        monkeypatch.setattr(losses, "anchor_targets", shifted)
        state, _ = step(init_state(trainable, optimizer), frozen, make_batch())
        return split(state.opt_state[1][0].mu, is_of_main_rows), state.params

    (expected, of_others), expected_params = update(trainable, 0)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves((expected, of_others)))
    for perturbed, shift in ((merge(main, others), 0), (trainable, 5), (merge(main, others), 3)):
        (gradient, changed), params = update(perturbed, shift)
        for name, leaf in flatten(expected).items():
            np.testing.assert_array_equal(flatten(gradient)[name], leaf, err_msg=name)
            np.testing.assert_array_equal(flatten(params)[name], flatten(expected_params)[name])
        for name, leaf in flatten(of_others).items():
            assert np.abs(flatten(changed)[name] - leaf).max() > 0, name


@pytest.mark.parametrize("drafts", [FORMS["pre_norm"], FORMS["medusa"]], ids=["streams", "medusa"])
def test_the_fine_tune_is_that_of_a_run_without_streams(drafts):
    """Same seed, five steps with dropout, two micro-batches a step; begun as there."""
    adaptation = dataclasses.replace(DETACHED, dropout=0.3)
    shared = dataclasses.replace(adaptation, mode="shared")
    both = oracles.make_model(adaptation=adaptation, **drafts)
    alone = oracles.make_model(adaptation=shared, num_streams=0)
    base = split(oracles.random_params(alone, 1, table_scale=0.5), lambda path: not is_new(path))[0]
    trained = {}
    for name, model in (("both", both), ("alone", alone)):
        state = jax.jit(lambda model=model: initial_params(model, 3, only_new=True))()
        begun = flatten(split(state, is_of_main_rows)[0])
        step, optimizer = make_step(model, 2)
        state, jitted = init_state(state, optimizer), jax.jit(step)
        losses_of_main = []
        for seed in range(5):
            state, metrics = jitted(state, base, make_batch(seed))
            losses_of_main.append(metrics.sums.cross_entropy[0])
        ended = flatten(split(state.params, is_of_main_rows)[0])
        trained[name] = begun, np.array(losses_of_main), ended
    (begun, measured, ended), (expected_begun, expected, expected_ended) = trained.values()
    assert begun.keys() == ended.keys() == expected_ended.keys()
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
    for name, leaf in expected_ended.items():
        np.testing.assert_array_equal(begun[name], expected_begun[name])
        assert np.abs(leaf - begun[name]).max() > 1e-3, name
        # A thousandth of a step: Adam moves leaves of the least gradients by their rounding, too.
        np.testing.assert_allclose(ended[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)


def test_streams_learn_beside_the_fine_tune():
    """Counting on a random base: the streams fall to their targets by their own adapters."""
    model = oracles.make_model(adaptation=dataclasses.replace(DETACHED, rank=8, alpha=16.0))
    params = oracles.random_params(model, 1, table_scale=0.3)
    base = split(params, lambda path: not is_new(path))[0]
    optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-2, warmup_steps=5), 120, DETACHED)
    step = make_train_step(model, optimizer, LossConfig(1.0, 0.1), num_anchors=9, accumulation=1)
    step = jax.jit(step, donate_argnums=0)
    state = init_state(jax.jit(lambda: initial_params(model, 0, only_new=True))(), optimizer)
    for seed in range(120):
        state, metrics = step(state, base, oracles.counting_batch(seed))
    share = metrics.sums.correct / metrics.sums.weight
    assert float(share.min()) > 0.9, share
    assert jnp.isfinite(metrics.loss)

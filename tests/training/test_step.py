"""The training step: what it moves, what it does not depend on, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import LossConfig, OptimizerConfig
from ssjax.models.parameters import merge
from ssjax.training.optimizer import is_decayed, make_optimizer, make_schedule
from ssjax.training.step import init_state, make_eval_step, make_train_step

CONFIG = LossConfig(main_weight=1.0, stream_weight=0.5)
TOLERANCE = 1e-5  # float32; parameters and updates are of size 1
NUM_STEPS = 10


def make_batch():
    """Ragged prompts and targets; row 0 has no target, row 3 one too short for stream 3."""
    rng = np.random.default_rng(0)
    prompt_length = np.array([4, 1, 3, 2])
    tokens = rng.integers(0, 13, (4, 10))
    return oracles.batch_of(tokens, prompt_length, prompt_length + [0, 6, 4, 2])


def sgd():
    """Plain descent shows gradients as they are; Adam would hide their scale."""
    import optax

    return optax.sgd(0.1)


@pytest.fixture(scope="module")
def step(tiny):
    """The step without accumulation."""
    return jax.jit(make_train_step(tiny[0], sgd(), CONFIG, num_anchors=6, accumulation=1))


@pytest.fixture(scope="module")
def one_step(tiny, step):
    """After one step over all parameters: (state, metrics)."""
    return step(init_state(tiny[1], sgd()), {}, make_batch())


def test_accumulation_does_not_matter(tiny, one_step):
    """Micro-batches of a row each: different weights, one without any target."""
    model, params = tiny
    step = jax.jit(make_train_step(model, sgd(), CONFIG, num_anchors=6, accumulation=4))
    state, metrics = step(init_state(params, sgd()), {}, make_batch())
    expected_state, expected = one_step
    pairs = zip(*map(jax.tree.leaves, (state.params, expected_state.params)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)
    for a, b in zip(*map(jax.tree.leaves, (metrics, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE)


def test_all_trainable_leaves_move(tiny, one_step):
    state, metrics = one_step
    moved = jax.tree.map(lambda a, b: np.abs(np.array(a) - b).max(), state.params, tiny[1])
    assert min(jax.tree.leaves(moved)) > 0
    assert int(state.step) == 1
    # Weight decay is off and the step is 0.1 times the gradient, so its norm is known.
    squares = jax.tree.map(lambda a, b: ((np.array(a) - b) ** 2).sum(), state.params, tiny[1])
    norm = np.sqrt(sum(jax.tree.leaves(squares))) / 0.1
    np.testing.assert_allclose(float(metrics.grad_norm), norm, rtol=1e-3)


def test_frozen_leaves_stay_and_change_no_gradient(tiny, step, one_step):
    """Stream embedding and stream layers trained, the rest frozen."""
    params = tiny[1]
    trainable = {k: params[k] for k in ("stream_embedding", "stream_layers")}
    frozen = {k: v for k, v in params.items() if k not in trainable}
    before = jax.tree.map(np.array, frozen)
    state, metrics = step(init_state(trainable, sgd()), frozen, make_batch())
    assert jax.tree.structure(state.params) == jax.tree.structure(trainable)
    for key in trainable:
        pairs = zip(
            *map(jax.tree.leaves, (state.params[key], one_step[0].params[key])), strict=True
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)
    for a, b in zip(*map(jax.tree.leaves, (frozen, before)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(metrics.loss, one_step[1].loss, rtol=TOLERANCE)
    assert jax.tree.structure(merge(state.params, frozen)) == jax.tree.structure(params)


def test_eval_step_reports_the_loss_of_the_train_step(tiny, one_step):
    model, params = tiny
    step = jax.jit(make_eval_step(model, CONFIG, num_anchors=6))
    sums = step(params, {}, make_batch())
    for a, b in zip(*map(jax.tree.leaves, (sums, one_step[1].sums)), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE)
    assert float(sums.cross_entropy.min()) > 0 and np.isfinite(sums.cross_entropy).all()


def test_model_without_streams_trains():
    model = oracles.make_model(num_streams=0)
    params = oracles.random_params(model, seed=0)
    assert "stream_embedding" not in params
    step = jax.jit(make_train_step(model, sgd(), CONFIG, num_anchors=6, accumulation=1))
    _, metrics = step(init_state(params, sgd()), {}, make_batch())
    assert metrics.sums.weight.shape == (1,) and np.isfinite(float(metrics.loss))


def test_step_is_reproducible_to_the_bit(tiny, step, one_step):
    again, _ = step(init_state(tiny[1], sgd()), {}, make_batch())
    for a, b in zip(*map(jax.tree.leaves, (again.params, one_step[0].params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_projection_matrices_decay_and_nothing_else(tiny):
    mask = {
        "/".join(part.key for part in path): decayed
        for path, decayed in jax.tree_util.tree_leaves_with_path(is_decayed(tiny[1]))
    }
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for path, decayed in mask.items():
        assert decayed == (path.split("/")[-2] in names if "/" in path else False), path
    assert sum(mask.values()) == 7 * 2  # both stacks

    # Zero gradients: AdamW then moves what decays, towards 0, and nothing else.
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5), NUM_STEPS
    )
    zeros = jax.tree.map(jnp.zeros_like, tiny[1])
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(tiny[1]), tiny[1])
    for (path, update), leaf in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(tiny[1]), strict=True
    ):
        decayed = mask["/".join(part.key for part in path)]
        np.testing.assert_allclose(update, -0.05 * leaf if decayed else 0 * leaf, atol=1e-6)


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup, num_steps", [(50, 400), (50, 10), (0, 5), (3, 1)])
def test_schedule_starts_peaks_and_ends(warmup, num_steps, decay):
    config = OptimizerConfig(1e-3, 1e-5, warmup_steps=warmup, decay=decay)
    rates = np.asarray(jax.vmap(make_schedule(config, num_steps))(jnp.arange(num_steps + 1)))
    peak = min(warmup, num_steps - 1)
    assert np.isfinite(rates).all()
    assert rates.argmax() == peak
    np.testing.assert_allclose(rates[peak], 1e-3, rtol=1e-5)
    np.testing.assert_allclose(rates[-1], 1e-5, rtol=1e-3)
    rising = 1e-3 * np.arange(peak + 1) / peak if peak else [1e-3]
    np.testing.assert_allclose(rates[: peak + 1], rising, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("decay", "corners"),
    [
        ("linear", [(10, 1e-3), (100, 1e-4)]),
        ("constant", [(10, 1e-3), (100, 1e-3)]),
        ("wsd", [(10, 1e-3), (70, 1e-3), (100, 1e-4)]),
    ],
)
def test_schedules_by_their_corners(decay, corners):
    config = OptimizerConfig(1e-3, 1e-4, warmup_steps=10, decay=decay, decay_share=0.3)
    steps, rates = zip((0, 0.0), *corners, strict=True)
    found = jax.vmap(make_schedule(config, 100))(jnp.arange(101))
    np.testing.assert_allclose(found, np.interp(range(101), steps, rates), rtol=1e-5, atol=1e-9)
    short = jax.vmap(make_schedule(config, 3))(jnp.arange(4))  # warm-up and fall overlap
    np.testing.assert_allclose(short[:3], [0, 5e-4, 1e-3], rtol=1e-5)


def test_gradient_is_clipped_by_its_global_norm(tiny):
    """Adam's first update does not see the scale of gradients, so look at its first moment."""
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.5, beta1=0.9), NUM_STEPS)
    gradient = jax.tree.map(jnp.ones_like, tiny[1])
    size = sum(leaf.size for leaf in jax.tree.leaves(tiny[1]))
    _, opt_state = jax.jit(optimizer.update)(gradient, optimizer.init(tiny[1]), tiny[1])
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
        if any(getattr(part, "name", "") == "mu" for part in path)
    ]
    for moment in moments:
        np.testing.assert_allclose(moment, 0.1 * 0.5 / np.sqrt(size), rtol=1e-4)
    assert len(moments) == len(jax.tree.leaves(tiny[1]))


def test_every_stream_learns_to_count(counting):
    """Stream j sees token t and must name token t + 1 + j: an alignment error shows as 1 / V."""
    model, params, metrics = counting
    np.testing.assert_array_equal(metrics.sums.correct, metrics.sums.weight)
    np.testing.assert_array_equal(metrics.sums.weight, [16 * (9 - j) for j in range(4)])
    batch = oracles.counting_batch(seed=10**6)  # not seen in training
    sums = jax.jit(make_eval_step(model, CONFIG, num_anchors=9))(params, {}, batch)
    np.testing.assert_array_equal(sums.correct, sums.weight)

"""Which token each stream is trained on, and what sums of losses must not depend on.

The oracle projects the model's own hidden states in float64 and walks over pairs of positions;
the model itself is compared with NumPy in `tests/models`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.config import LossConfig, ModelConfig, StreamsConfig
from ssjax.models.transformer import Transformer, causal_mask
from ssjax.training.losses import (
    Batch,
    anchor_targets,
    chunked_cross_entropy,
    loss_sums,
    loss_weights,
    target_weight,
    weighted_loss,
)

SUM_TOLERANCE = 1e-5  # relative, of float32 sums of up to 100 terms
GRADIENT_TOLERANCE = 1e-5  # absolute, of gradients of size 1
V, J = 13, 2
PROMPT = np.array([3, 1, 5, 2, 4])
LENGTH = np.array([6, 8, 5, 3, 8])  # row 2 has no target, row 3 one that no stream predicts
NUM_ANCHORS = 7

MODEL = Transformer(
    ModelConfig(
        vocab_size=V,
        embed_dim=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=24,
        tie_embeddings=False,
    ),
    StreamsConfig(J, num_stream_layers=1),
    scan=True,
)


def draw_params():
    rng = np.random.default_rng(4)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2, 2), bool)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens, mask)["params"]

    def draw(leaf):
        scale = 2 / np.sqrt(leaf.shape[-1]) if leaf.ndim == 3 else 1
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


PARAMS = draw_params()


def make_batch(width=8, filler=None):
    """Random rows; behind each length other random tokens, or `filler`."""
    tokens = np.random.default_rng(9).integers(0, V, (len(LENGTH), 8))
    tokens = np.pad(tokens, [(0, 0), (0, width - 8)], constant_values=1)
    if filler is not None:
        tokens = np.where(np.arange(width) < LENGTH[:, None], tokens, filler)
    return Batch(*(jnp.asarray(x, jnp.int32) for x in (tokens, PROMPT, LENGTH)))


@functools.partial(jax.jit, static_argnames=("num_anchors", "chunk_size"))
def sums_of(batch, num_anchors=NUM_ANCHORS, chunk_size=1024, params=PARAMS):
    return loss_sums(MODEL, params, batch, num_anchors, chunk_size)


def assert_sums_close(got, expected):
    np.testing.assert_allclose(got.cross_entropy, expected.cross_entropy, rtol=SUM_TOLERANCE)
    np.testing.assert_array_equal(got.correct, expected.correct)
    np.testing.assert_array_equal(got.weight, expected.weight)


# Targets.


def test_the_table_of_the_module():
    """prompt p0 p1 p2, targets y1 y2 y3; a row without targets; a full row; a row of one."""
    p0, p1, p2, y1, y2, y3 = 10, 11, 12, 1, 2, 3
    pad = 0
    tokens = [
        [p0, p1, p2, y1, y2, y3, pad],
        [p0, p1, p2, pad, pad, pad, pad],
        [p0, y1, y2, y3, y1, y2, y3],
        [p0, p1, p2, p0, p1, p2, y1],
    ]
    batch = Batch(jnp.array(tokens), jnp.array([3, 3, 1, 6]), jnp.array([6, 3, 7, 7]))
    anchors, targets, weights = anchor_targets(batch, num_anchors=4, num_streams=2)
    #         main, stream 1, stream 2 at each anchor; 0: no target
    table = [
        [[y1, y2, y3], [y2, y3, 0], [y3, 0, 0], [0, 0, 0]],
        [[0, 0, 0]] * 4,
        [[y1, y2, y3], [y2, y3, y1], [y3, y1, y2], [y1, y2, y3]],
        [[y1, 0, 0]] + [[0, 0, 0]] * 3,
    ]
    np.testing.assert_array_equal(weights, np.array(table) != 0)
    np.testing.assert_array_equal(np.where(weights, targets, 0), table)
    np.testing.assert_array_equal(anchors[0, :3], [2, 3, 4])
    np.testing.assert_array_equal(anchors[2], [0, 1, 2, 3])
    assert int(anchors[3, 0]) == 5
    assert weights.dtype == jnp.float32
    # Whatever does not count is still a legal index.
    assert 0 <= int(anchors.min()) and int(anchors.max()) < 7
    assert 0 <= int(targets.min()) and int(targets.max()) <= 12


def test_no_target_lies_in_a_prompt_or_behind_an_end():
    """All ragged shapes of width 6: targets are named by position, with a loop as the oracle."""
    width, num_streams = 6, 3
    prompt, length = map(np.array, zip(*[
        (p, n) for p in range(1, width + 1) for n in range(p, width + 1)
    ], strict=True))  # fmt: skip
    tokens = np.tile(np.arange(width), (len(prompt), 1))  # token = its position
    batch = Batch(*map(jnp.asarray, (tokens, prompt, length)))
    anchors, targets, weights = map(np.asarray, anchor_targets(batch, width, num_streams))
    for b in range(len(prompt)):
        seen = {
            (j, int(anchors[b, a]), int(targets[b, a, j]))
            for a, j in zip(*np.nonzero(weights[b]), strict=True)
        }
        expected = {
            (j, t, t + 1 + j)
            for j in range(num_streams + 1)
            for t in range(prompt[b] - 1, width)
            if prompt[b] <= t + 1 + j < length[b]
        }
        assert seen == expected and len(seen) == weights[b].sum()
    np.testing.assert_array_equal(target_weight(batch, num_streams), weights.sum((0, 1)))


# Sums over the model's own outputs.


@functools.cache
def states():
    """Hidden states of every position in float64, main [B, T, D] and streams [B, T, J, D]."""
    tokens = make_batch().tokens
    at = jnp.broadcast_to(jnp.arange(8), tokens.shape)
    output = jax.jit(
        lambda tokens: MODEL.apply(
            {"params": PARAMS}, tokens, at, causal_mask(8), anchors=at, num_streams=J
        )
    )(tokens)
    return np.asarray(output.hidden, np.float64), np.asarray(output.stream_hidden, np.float64)


def expected_sums(shift=0):
    """(cross-entropy, hits, weight), stream j at t against token t + 1 + j + shift."""
    main, streams = states()
    table = np.asarray(PARAMS["lm_head"], np.float64)
    tokens, sums = np.asarray(make_batch().tokens), np.zeros((3, 1 + J))
    for b in range(len(LENGTH)):
        for t in range(PROMPT[b] - 1, 8):
            for j in range(1 + J):
                if t + 1 + j >= LENGTH[b]:
                    continue
                target = tokens[b, (t + 1 + j + shift) % 8]
                logits = table @ (main[b, t] if j == 0 else streams[b, t, j - 1])
                sums[0, j] += np.log(np.exp(logits).sum()) - logits[target]
                sums[1, j] += logits.argmax() == target
                sums[2, j] += 1
    return sums


def test_stream_j_predicts_token_t_plus_1_plus_j():
    sums = sums_of(make_batch())
    cross_entropy, correct, weight = expected_sums()
    np.testing.assert_allclose(sums.cross_entropy, cross_entropy, rtol=SUM_TOLERANCE)
    np.testing.assert_array_equal(sums.correct, correct)
    np.testing.assert_array_equal(sums.weight, weight)
    np.testing.assert_array_equal(weight, target_weight(make_batch(), J))
    np.testing.assert_array_equal(weight, [3 + 7 + 0 + 1 + 4, 2 + 6 + 3, 1 + 5 + 2])
    for shift in (-1, 1):  # the tokens are random: another alignment has other sums
        assert np.abs(expected_sums(shift)[0] / cross_entropy - 1).min() > 1e-3


@pytest.mark.parametrize("chunk_size", [1, 7, 10**6])
def test_chunk_size_does_not_matter(chunk_size):
    assert_sums_close(sums_of(make_batch(), chunk_size=chunk_size), sums_of(make_batch()))


@pytest.mark.parametrize("width, num_anchors", [(8, 11), (20, NUM_ANCHORS), (20, 16)])
def test_padding_and_spare_anchors_do_not_matter(width, num_anchors):
    got = sums_of(make_batch(width), num_anchors=num_anchors)
    assert_sums_close(got, sums_of(make_batch()))


def test_content_of_padding_changes_no_bit():
    expected = sums_of(make_batch())
    for filler in (0, 12):
        got = sums_of(make_batch(filler=filler))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_rows_add_up():
    """Sums of the batch are sums over its rows, each in a batch of its own; row order is free."""
    batch, total = make_batch(), np.zeros(1 + J)
    for b in range(len(LENGTH)):
        alone = sums_of(jax.tree.map(lambda x, b=b: x[b : b + 1], batch))
        total += np.asarray(alone.cross_entropy)
    expected = sums_of(batch)
    np.testing.assert_allclose(total, expected.cross_entropy, rtol=SUM_TOLERANCE)
    turned = jax.tree.map(lambda x: x[np.array([3, 0, 4, 2, 1])], batch)
    assert_sums_close(sums_of(turned), expected)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    empty = make_batch().replace(length=jnp.asarray(PROMPT, jnp.int32))

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        sums = loss_sums(MODEL, params, batch, NUM_ANCHORS, 1024)
        alphas = loss_weights(LossConfig(), J)
        return weighted_loss(sums, alphas, target_weight(batch, J))

    value, gradient = loss(PARAMS, empty)
    assert float(value) == 0.0
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    for leaf in jax.tree.leaves(sums_of(empty)):
        np.testing.assert_array_equal(leaf, np.zeros(1 + J))
    value, gradient = loss(PARAMS, make_batch())  # some rows empty: finite, and not zero
    assert float(value) > 0
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


# Chunks alone.


def numpy_sums(hidden, table, targets, weights):
    """Target by target in float64; also the gradients of the summed cross-entropy."""
    sums = np.zeros((3, targets.shape[2]))
    d_hidden, d_table = np.zeros(hidden.shape), np.zeros(table.shape)
    for b, a, q in np.ndindex(targets.shape):
        logits = table.astype(np.float64) @ hidden[b, a, q]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        sums[0, q] -= weights[b, a, q] * np.log(p[targets[b, a, q]])
        sums[1, q] += weights[b, a, q] * (logits.argmax() == targets[b, a, q])
        sums[2, q] += weights[b, a, q]
        p[targets[b, a, q]] -= 1
        d_hidden[b, a, q] = weights[b, a, q] * (p @ table)
        d_table += weights[b, a, q] * np.outer(p, hidden[b, a, q])
    return sums, d_hidden, d_table


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 1000])
def test_chunked_cross_entropy_equals_numpy(chunk_size):
    """Values, hits and gradients; half of the positions are padding and some chunks are empty."""
    rng = np.random.default_rng(6)
    hidden = rng.standard_normal((3, 4, 3, 5)).astype(np.float32)
    table = rng.standard_normal((V, 5)).astype(np.float32)
    targets = (hidden @ table.T).argmax(-1)  # every other one is a hit
    targets[:, ::2] = rng.integers(0, V, targets[:, ::2].shape)
    weights = np.ones(targets.shape, np.float32)
    weights[0], weights[1, 2:], weights[2, :, 1:] = 0, 0, 0
    weights[2, 1, 2] = 1  # a row whose main stream counts and whose stream 1 does not

    def total(hidden, table):
        sums = chunked_cross_entropy(hidden, table, targets, weights, chunk_size)
        return sums.cross_entropy.sum(), sums

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (d_hidden, d_table), sums = gradient(jnp.asarray(hidden), jnp.asarray(table))
    expected, *gradients = numpy_sums(hidden, table, targets, weights)
    np.testing.assert_allclose(sums.cross_entropy, expected[0], rtol=SUM_TOLERANCE)
    np.testing.assert_array_equal(sums.correct, expected[1])
    np.testing.assert_array_equal(sums.weight, expected[2])
    assert 0 < expected[1].sum() < expected[2].sum()
    np.testing.assert_allclose(d_hidden, gradients[0], atol=GRADIENT_TOLERANCE, rtol=0)
    np.testing.assert_allclose(d_table, gradients[1], atol=GRADIENT_TOLERANCE, rtol=0)


def test_large_logits_stay_finite():
    """exp(400) is no float32; the cross-entropy of a miss by 400 nats is 400."""
    hidden = jnp.array([[[[400.0]], [[-400.0]]]])
    table = jnp.array([[1.0], [0.0]])
    sums = chunked_cross_entropy(
        hidden, table, jnp.array([[[1], [1]]]), jnp.ones((1, 2, 1), jnp.float32), 2
    )
    np.testing.assert_allclose(sums.cross_entropy, [400.0], rtol=SUM_TOLERANCE)
    np.testing.assert_array_equal(sums.correct, [1])

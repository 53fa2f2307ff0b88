"""`attend` over segments against one float64 softmax over concatenated keys."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import ModelConfig
from ssjax.models.attention import (
    KV,
    LocalSegment,
    SharedSegment,
    apply_rotary,
    attend,
    rotary_frequencies,
    rotary_tables,
)

B, T, I, H, S, J = 2, 5, 3, 4, 6, 3  # noqa: E741
TOLERANCE = 1e-5
attend_jit = jax.jit(attend)


def make_inputs(num_kv_heads, group, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32) * 2

    return {
        "q": normal(B, T, I, num_kv_heads, group, H),
        "prefix": (normal(B, num_kv_heads, S, H), normal(B, num_kv_heads, S, H)),
        "block": (normal(B, num_kv_heads, T, H), normal(B, num_kv_heads, T, H)),
        "local": (normal(B, T, J, num_kv_heads, H), normal(B, T, J, num_kv_heads, H)),
        "length": np.array([0, 4]),  # row 0 has an empty prefix
        "block_mask": np.tril(np.ones((T, T), bool))[None],
        "local_mask": np.tril(np.ones((I, J), bool)),
    }


def segments_of(x):
    prefix_mask = (np.arange(S) < x["length"][:, None])[:, None]
    return [
        SharedSegment(KV(*x["prefix"]), jnp.asarray(prefix_mask)),
        SharedSegment(KV(*x["block"]), jnp.asarray(x["block_mask"])),
        LocalSegment(*x["local"], jnp.asarray(x["local_mask"])),
    ]


def one_softmax(x, b, t, i, k, g):
    """The keys that this query sees, side by side, under one softmax."""
    keys = [x["prefix"][0][b, k, s] for s in range(x["length"][b])]
    values = [x["prefix"][1][b, k, s] for s in range(x["length"][b])]
    for s in range(T):
        if x["block_mask"][0, t, s]:
            keys.append(x["block"][0][b, k, s])
            values.append(x["block"][1][b, k, s])
    for j in range(J):
        if x["local_mask"][i, j]:
            keys.append(x["local"][0][b, t, j, k])
            values.append(x["local"][1][b, t, j, k])
    scores = np.array(keys, np.float64) @ x["q"][b, t, i, k, g].astype(np.float64) / np.sqrt(H)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ np.array(values, np.float64)


@pytest.mark.parametrize("num_kv_heads, group", [(2, 2), (1, 4), (3, 1)], ids=["gqa", "mqa", "mha"])
def test_segments_equal_one_softmax(num_kv_heads, group):
    x = make_inputs(num_kv_heads, group)
    out = np.asarray(attend_jit(jnp.asarray(x["q"]), segments_of(x)))
    assert out.shape == x["q"].shape
    for index in np.ndindex(out.shape[:-1]):
        np.testing.assert_allclose(out[index], one_softmax(x, *index), atol=TOLERANCE, rtol=0)


def test_fully_masked_segment_changes_no_bit():
    """An empty prefix (length 0) against the call without a prefix.

    Not jitted: the optimising compiler rounds these two programs differently, by up to 2.4e-7.
    """
    x = make_inputs(2, 2)
    x["length"] = np.array([0, 0])
    with_prefix = attend(jnp.asarray(x["q"]), segments_of(x))
    without = attend(jnp.asarray(x["q"]), segments_of(x)[1:])
    np.testing.assert_array_equal(with_prefix, without)


def test_masked_slots_may_hold_anything_finite():
    """Values of 1e9 in masked keys and values change no bit."""
    x = make_inputs(2, 2)
    clean = attend_jit(jnp.asarray(x["q"]), segments_of(x))
    for array in x["prefix"]:
        array[0] = 1e9
        array[1, :, 4:] = -1e9
    np.testing.assert_array_equal(clean, attend_jit(jnp.asarray(x["q"]), segments_of(x)))


def test_gradients_equal_finite_differences():
    """The join by log-sum-exp has the right derivative, its stopped peak included."""
    x = make_inputs(1, 2)
    direction = make_inputs(1, 2, seed=1)
    weight = np.random.default_rng(2).standard_normal(x["q"].shape).astype(np.float32)

    def value(arrays):
        moved = {**x, **arrays}
        return jnp.sum(attend(moved["q"], segments_of(moved)) * weight)

    arrays = {k: jax.tree.map(jnp.asarray, x[k]) for k in ("q", "prefix", "block", "local")}
    tangent = {k: jax.tree.map(jnp.asarray, direction[k]) for k in arrays}
    gradient = jax.jit(jax.grad(value))(arrays)
    slope = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, gradient, tangent))

    def exact(scale):
        moved = jax.tree.map(lambda a, t: np.float64(a) + scale * np.float64(t), arrays, tangent)
        rows = np.ndindex(weight.shape[:-1])
        return sum(one_softmax({**x, **moved}, *index) @ weight[index] for index in rows)

    numeric = (exact(1e-5) - exact(-1e-5)) / 2e-5
    assert abs(float(slope) - numeric) < 1e-4 * max(1.0, abs(numeric))


def test_rotary_equals_complex_rotation():
    rows = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 7, 500], [3, 3, 0, 9, 1]])
    config = ModelConfig(head_dim=8, rope_theta=100.0)
    cos, sin = rotary_tables(jnp.asarray(positions), rotary_frequencies(config, local=False))
    turned = apply_rotary(jnp.asarray(rows), cos, sin)
    for b in range(2):
        for n in range(3):
            expected = oracles.rotate(rows[b, :, n], positions[b], 100.0)
            # Float32 angles of 500 radians are good to 3e-5.
            np.testing.assert_allclose(turned[b, :, n], expected, atol=1e-4, rtol=0)

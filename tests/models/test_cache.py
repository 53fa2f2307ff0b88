"""Writes to the cache against NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.models.attention import KV
from ssjax.models.cache import KVCache, cache_from_block, write_path
from ssjax.models.execution import Execution

B, K, S, H, M = 6, 2, 5, 3, 4


def kv(seed, slots, layers=None):
    rng = np.random.default_rng(seed)
    shape = (B, K, slots, H) if layers is None else (layers, B, K, slots, H)
    return KV(*(jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2)))


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_write_path_equals_a_loop(scanned, platform):
    """Counts 0, partial and full; slots past the capacity are dropped, not clamped."""

    def make(seed, slots):
        if scanned:
            return KVCache(kv(seed, slots, 1), kv(seed + 1, slots, 2))
        return KVCache((kv(seed, slots),), (kv(seed + 1, slots), kv(seed + 2, slots)))

    cache, block = make(0, S), make(10, M)
    path = np.array([[0, 1, 3], [0, 2, 2], [3, 0, 1], [0, 1, 2], [2, 1, 0], [0, 3, 2]])
    length = np.array([0, 2, 1, 4, 5, 3])
    count = np.array([3, 1, 0, 3, 2, 3])
    write = jax.jit(write_path, static_argnums=5)
    arguments = map(jnp.asarray, (path, length, count))
    written = write(cache, block, *arguments, Execution(platform))
    dropped = 0
    for before, source, after in zip(*map(jax.tree.leaves, (cache, block, written)), strict=True):
        expected = np.array(before)
        for b in range(B):
            for r in range(count[b]):
                if length[b] + r < S:
                    expected[..., b, :, length[b] + r, :] = np.asarray(source)[
                        ..., b, :, path[b, r], :
                    ]
                else:
                    dropped += 1
        np.testing.assert_array_equal(after, expected)
    assert dropped > 0


def test_cache_from_block_keeps_valid_positions_only():
    block = KVCache(kv(0, 3, 1), kv(1, 3, 2))
    length = np.array([0, 1, 2, 3, 3, 1])
    cache = cache_from_block(block, jnp.asarray(length), S)
    for source, fitted in zip(*map(jax.tree.leaves, (block, cache)), strict=True):
        assert fitted.shape[-2] == S
        for b in range(B):
            n = length[b]
            np.testing.assert_array_equal(fitted[:, b, :, :n], source[:, b, :, :n])
            assert not np.asarray(fitted)[:, b, :, n:].any()

"""The cache against lists of accepted tokens that grow in Python.

Single writes are compared with a loop in `test_cache`; here writes follow one another, and no
slot may hold anything but the tokens that were accepted, in order, then zeros.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.models.attention import KV
from ssjax.models.cache import KVCache, cache_from_block, write_path
from ssjax.models.execution import Execution

B, K, H, S = 5, 2, 3, 7  # S: capacity
M, R = 6, 4  # nodes of a pass, entries of a path
LAYERS = {"trunk": 1, "stream_layers": 2}


def random_block(rng, num_positions):
    """Both stacks in NumPy, scanned: {stack: (keys, values)}, each [L, B, K, M, H]."""
    return {
        name: tuple(
            rng.standard_normal((layers, B, K, num_positions, H)).astype(np.float32)
            for _ in range(2)
        )
        for name, layers in LAYERS.items()
    }


def to_device(block, scanned):
    def stack(keys, values):
        # To a device that is named: else JAX takes the layout of what comes out of a program, which
        # `write_path` chooses for TPU, for the default one of the CPU where it goes in again.
        keys, values = (jax.device_put(x, jax.devices()[0]) for x in (keys, values))
        if scanned:
            return KV(keys, values)
        return tuple(KV(k, v) for k, v in zip(keys, values, strict=True))

    return KVCache(**{name: stack(*pair) for name, pair in block.items()})


def to_numpy(cache, scanned):
    """The inverse of `to_device`."""

    def stack(kv):
        if scanned:
            return np.asarray(kv.keys), np.asarray(kv.values)
        return tuple(np.stack([np.asarray(getattr(x, n)) for x in kv]) for n in ("keys", "values"))

    return {name: stack(getattr(cache, name)) for name in LAYERS}


class Ledger:
    """What every row has accepted: per row a list of (block, node)."""

    def __init__(self):
        self.rows = [[] for _ in range(B)]

    def add(self, block, path, count):
        for b in range(B):
            self.rows[b] += [(block, node) for node in path[b, : count[b]]]

    def expected(self):
        cache = {n: np.zeros((2, layers, B, K, S, H), np.float32) for n, layers in LAYERS.items()}
        for b, accepted in enumerate(self.rows):
            for slot, (block, node) in enumerate(accepted[:S]):
                for name in LAYERS:
                    for part in range(2):
                        cache[name][part, :, b, :, slot] = block[name][part][:, b, :, node]
        return cache


def assert_holds(cache, ledger, scanned):
    expected = ledger.expected()
    for name, pair in to_numpy(cache, scanned).items():
        for part in range(2):
            np.testing.assert_array_equal(pair[part], expected[name][part])


EXECUTIONS = [Execution(), Execution("tpu")]


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_writes_in_a_row_hold_the_accepted_tokens_in_order(scanned, execution):
    """Random counts from 0 to R until every row has run far over its capacity."""
    rng = np.random.default_rng(0)
    write, ledger = jax.jit(write_path, static_argnums=5), Ledger()
    prompt, prompt_length = random_block(rng, 3), np.array([0, 1, 3, 2, 3])
    ledger.add(prompt, np.tile(np.arange(3), (B, 1)), prompt_length)
    cache = cache_from_block(to_device(prompt, scanned), jnp.asarray(prompt_length), S)
    assert_holds(cache, ledger, scanned)
    length, counts = prompt_length.copy(), set()
    for _ in range(12):
        block = random_block(rng, M)
        path, count = rng.integers(0, M, (B, R)), rng.integers(0, R + 1, B)
        arguments = map(jnp.asarray, (path, length, count))
        cache = write(cache, to_device(block, scanned), *arguments, execution)
        ledger.add(block, path, count)
        length += count
        counts |= set(count.tolist())
        assert_holds(cache, ledger, scanned)
    assert counts == set(range(R + 1)) and length.min() > S + R


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("length", [S - 1, S, S + 1, 10 * S])
def test_a_write_over_the_end_fills_what_fits_and_moves_nothing(scanned, execution, length):
    """`dynamic_update_slice` would shift the write back over accepted tokens."""
    rng = np.random.default_rng(1)
    ledger, held, block = Ledger(), random_block(rng, S), random_block(rng, M)
    full = min(length, S)
    ledger.add(held, np.tile(np.arange(S), (B, 1)), np.full(B, full))
    cache = cache_from_block(to_device(held, scanned), jnp.full(B, full), S)
    path = np.tile([0, 5, 2, 4], (B, 1))
    lengths, counts = jnp.full(B, length), jnp.full(B, R)
    block_on_device = to_device(block, scanned)
    written = write_path(cache, block_on_device, jnp.asarray(path), lengths, counts, execution)
    ledger.add(block, path, np.full(B, R))
    assert_holds(written, ledger, scanned)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_rest_of_a_path_is_never_read(execution):
    """Entries after the count may name any row, and those rows may hold NaN."""
    rng = np.random.default_rng(2)
    block = random_block(rng, M)
    for pair in block.values():
        for leaf in pair:
            leaf[..., 3:, :] = np.nan
    zero = jax.tree.map(
        lambda x: jnp.zeros((*x.shape[:-2], S, H)), to_device(random_block(rng, 1), True)
    )
    count = np.array([0, 1, 2, 3, 2])
    path = np.where(np.arange(R) < count[:, None], np.minimum(np.arange(R), 2), 5)
    path, length, count_of = jnp.asarray(path), jnp.arange(B), jnp.asarray(count)
    written = write_path(zero, to_device(block, True), path, length, count_of, execution)
    for name, pair in to_numpy(written, True).items():
        for part in range(2):
            for b in range(B):
                slots = pair[part][:, b]
                np.testing.assert_array_equal(
                    slots[:, :, b : b + count[b]], block[name][part][:, b, :, : count[b]]
                )
                assert not np.delete(slots, np.s_[b : b + count[b]], axis=2).any()


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("capacity", [3, S])
def test_a_cache_is_zero_after_each_length_even_if_the_block_is_not_finite(scanned, capacity):
    block = random_block(np.random.default_rng(3), 3)
    length = np.array([0, 1, 2, 3, 1])
    for pair in block.values():
        for leaf in pair:
            for b in range(B):
                leaf[:, b, :, length[b] :] = [np.nan, np.inf, -np.inf]
    fit = jax.jit(functools.partial(cache_from_block, capacity=capacity))
    cache = to_numpy(fit(to_device(block, scanned), jnp.asarray(length)), scanned)
    for name in LAYERS:
        for got, source in zip(cache[name], block[name], strict=True):
            assert got.shape == (*source.shape[:3], capacity, H)
            for b in range(B):
                np.testing.assert_array_equal(
                    got[:, b, :, : length[b]], source[:, b, :, : length[b]]
                )
                assert (got[:, b, :, length[b] :] == 0).all()

"""The key/value cache: it only ever receives accepted tokens.

Keys and values of draft nodes live in the block of the pass that computed them. After
acceptance the rows of the accepted path are gathered from that block and written after
the valid prefix, so there is no rollback, no compaction and no stale tail. Every row of the
batch has its own length.

    row 0, length 3   | k0 k1 k2 .  .  .  |   accepted path (2 nodes) of the block
    after the write   | k0 k1 k2 a0 a1 .  |   length 5; slots from 5 on still hold zeros
"""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.models.attention import KV
from ssjax.parallel.partitioning import constrain


@struct.dataclass
class KVCache:
    """Cached keys and values of both stacks of layers.

    In the scanned form each stack is one `KV` with a leading layer axis, in the unrolled
    form a tuple of `KV`, one a layer. How many slots are valid is the caller's `length`.
    """

    trunk: KV | tuple[KV, ...]  # leaves [B, K, S, H], with a leading [L - Ns] if scanned
    stream_layers: KV | tuple[KV, ...]  # leaves [B, K, S, H], with a leading [Ns] if scanned


def cache_from_block(block: KVCache, length: jax.Array, capacity: int) -> KVCache:
    """Turns the block of a prefill into a cache.

    Args:
      block: keys and values of a whole prompt, T <= capacity positions.
      length: [B] int32, valid positions per row; what lies after them becomes zero.
      capacity: S, slots per row of the cache.
    """

    def fit(leaf):
        num_positions = leaf.shape[-2]
        valid = jnp.arange(num_positions) < length[:, None]  # [B, T]
        kept = jnp.where(valid[:, None, :, None], leaf, 0)
        pad = [(0, 0)] * leaf.ndim
        pad[-2] = (0, capacity - num_positions)
        return _constrained(jnp.pad(kept, pad))

    return jax.tree.map(fit, block)


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The cache with more slots per row, which hold zeros. capacity: at least those it has."""

    def longer(leaf):
        more = [(0, 0)] * leaf.ndim
        more[-2] = (0, capacity - leaf.shape[-2])
        return _constrained(jnp.pad(leaf, more))

    return jax.tree.map(longer, cache)


def valid_slots(cache: KVCache | None, length: jax.Array | None) -> jax.Array | None:
    """[B, 1, S] bool: the slots below length [B] int32; None without a cache."""
    if cache is None:
        return None
    num_slots = jax.tree.leaves(cache)[0].shape[-2]
    return (jnp.arange(num_slots) < length[:, None])[:, None]


def write_path(
    cache: KVCache, block: KVCache, path: jax.Array, length: jax.Array, count: jax.Array
) -> KVCache:
    """Appends rows of the block to the cache.

    Args:
      cache: valid below `length`.
      block: keys and values of the M nodes of a pass, same leaves with M in place of S.
      path: [B, R] int32, block rows in the order of their positions.
      length: [B] int32, the slot that path[:, 0] goes to.
      count: [B] int32, how many entries of the path to write; 0 writes nothing. Writes at
        or past the capacity are dropped.
    """
    step = jnp.arange(path.shape[1])

    # A row at a time under `vmap`: the compiler then knows that no row writes into another's
    # slots, and a mesh that divides the batch needs no exchange.
    @jax.vmap
    def write(cached, computed, path, length, count):
        slot = jnp.where(step < count, length + step, cached.shape[-2])
        return cached.at[:, slot].set(computed[:, path], mode="drop")

    def write_layers(cached, computed):
        scanned = cached.ndim == 5
        all_layers = jax.vmap(write, in_axes=(0, 0, None, None, None)) if scanned else write
        return _constrained(all_layers(cached, computed, path, length, count))

    return jax.tree.map(write_layers, cache, block)


def block_at(block: KV | tuple[KV, ...], index: jax.Array) -> KV | tuple[KV, ...]:
    """The keys and values of some positions of one stack's block. index: [B, P] int32."""

    def take(leaf):
        return jax.vmap(lambda computed, index: computed[:, index])(leaf, index)

    def take_layers(leaf):
        return jax.vmap(take)(leaf) if leaf.ndim == 5 else take(leaf)

    return jax.tree.map(take_layers, block)


def _constrained(leaf):
    axes = ("batch", "kv_heads", "length", "head_dim")
    return constrain(leaf, *(("layers", *axes) if leaf.ndim == 5 else axes))

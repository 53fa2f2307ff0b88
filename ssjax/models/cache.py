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
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from ssjax.models.attention import KV
from ssjax.models.execution import Execution
from ssjax.parallel import partitioning
from ssjax.parallel.partitioning import constrain

_LANES = 128  # of a register of the TPU's vector unit


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
    cache: KVCache,
    block: KVCache,
    path: jax.Array,
    length: jax.Array,
    count: jax.Array,
    execution: Execution,
) -> KVCache:
    """Appends rows of the block to the cache.

    Args:
      cache: valid below `length`.
      block: keys and values of the M nodes of a pass, same leaves with M in place of S.
      path: [B, R] int32, block rows in the order of their positions.
      length: [B] int32, the slot that path[:, 0] goes to.
      count: [B] int32, how many entries of the path to write; 0 writes nothing. Writes at
        or past the capacity are dropped.
      execution: of the model; for a TPU slots are written in a way that leaves the cache in its
        place, where a scatter would lay it out anew in every pass.
    """
    write = _write_in_place if execution.platform == "tpu" else _scatter
    return jax.tree.map(
        lambda cached, computed: _constrained(write(cached, computed, path, length, count)),
        cache,
        block,
    )


def _scatter(cached, computed, path, length, count):
    step = jnp.arange(path.shape[1])

    # A row at a time under `vmap`: the compiler then knows that no row writes into another's
    # slots, and a mesh that divides the batch needs no exchange.
    @jax.vmap
    def write(cached, computed, path, length, count):
        slot = jnp.where(step < count, length + step, cached.shape[-2])
        return cached.at[:, slot].set(computed[:, path], mode="drop")

    all_layers = jax.vmap(write, in_axes=(0, 0, None, None, None)) if cached.ndim == 5 else write
    return all_layers(cached, computed, path, length, count)


def _write_in_place(cached, computed, path, length, count):
    """Row by row the slots that the path goes to are read, changed and put back."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _write_rows(cached, computed, path, length, count)
    own = partitioning.spec(_axes(cached), cached.shape, mesh.shape)
    rows = PartitionSpec(own[cached.ndim - 4])
    return jax.shard_map(
        _write_rows, in_specs=(own, own, rows, rows, rows), out_specs=own, check_vma=False
    )(cached, computed, path, length, count)


def _write_rows(cached, computed, path, length, count):
    num_slots, batch_axis, slot_axis = cached.shape[-2], cached.ndim - 4, cached.ndim - 2
    width = min(path.shape[1], num_slots)
    # Near the end the slots begin before the path does: a slice cannot reach beyond the end.
    first = jnp.clip(length, 0, num_slots - width)
    step = first[:, None] + jnp.arange(width) - length[:, None]  # [B, width], places on the path
    is_new = (step >= 0) & (step < count[:, None])
    node = jnp.take_along_axis(path, jnp.clip(step, 0, path.shape[1] - 1), axis=1)
    for row in range(path.shape[0]):
        begin = [0] * cached.ndim
        begin[batch_axis], begin[slot_axis] = row, first[row]
        sizes = list(cached.shape)
        sizes[batch_axis], sizes[slot_axis] = 1, width
        old = jax.lax.dynamic_slice(cached, begin, sizes)
        new = jnp.take(
            jax.lax.slice_in_dim(computed, row, row + 1, axis=batch_axis), node[row], slot_axis
        )
        kept = jnp.where(is_new[row][:, None], new, old)
        cached = jax.lax.dynamic_update_slice(cached, kept, begin)
    return with_layout_constraint(cached, _default_layout(cached.shape))


def _default_layout(shape):
    """How a TPU lays out an array that enters a program: so the cache stays as it came.

    The last dimension is padded to the 128 lanes of a register. Of slots and head width it is the
    one with which less is wasted.
    """
    *others, slots, width = range(len(shape))
    num_slots, head_dim = shape[-2:]
    is_swapped = _in_lanes(num_slots) * head_dim < _in_lanes(head_dim) * num_slots
    return Layout(major_to_minor=(*others, *((width, slots) if is_swapped else (slots, width))))


def _in_lanes(size):
    return -(-size // _LANES) * _LANES


def block_at(block: KV | tuple[KV, ...], index: jax.Array) -> KV | tuple[KV, ...]:
    """The keys and values of some positions of one stack's block. index: [B, P] int32."""

    def take(leaf):
        return jax.vmap(lambda computed, index: computed[:, index])(leaf, index)

    def take_layers(leaf):
        return jax.vmap(take)(leaf) if leaf.ndim == 5 else take(leaf)

    return jax.tree.map(take_layers, block)


def _constrained(leaf):
    return constrain(leaf, *_axes(leaf))


def _axes(leaf):
    """Logical names of the dimensions of a leaf, with or without layers before it."""
    axes = ("batch", "kv_heads", "length", "head_dim")
    return ("layers", *axes) if leaf.ndim == 5 else axes

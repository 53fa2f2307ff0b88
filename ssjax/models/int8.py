"""Weights in eight bits for decoding: of each row, which gives one output, a scale in float32.

    w[o, i] ~ scale[o] values[o, i],   values = round(w / scale),   scale[o] = max_i |w[o, i]| / 127

The product is x @ values.T in the compute dtype, times the scales: TPUs and GPUs read a byte a
weight where they read two or four. On CPU XLA writes the weights out in the compute dtype in every
pass, which saves memory and costs time. The model is another one than that of the whole weights, by
up to half a step in every weight; whatever decodes it, plainly or with drafts, decodes the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

_LARGEST = 127
# TPUs hold 32 rows of eight bits together. To gather single ones their compiler lays the whole
# table out anew in every pass, as it predicts 1.27 ms of 2.99 for a Llama-3.2-1B on v6e.
# So the few rows of a pass are taken by way of their tiles.
_TILE = 32
_FEW_ROWS = 256
_TABLES = ("embedder", "lm_head", "draft_head")

Params = dict[str, Any]


@struct.dataclass
class Int8:
    """A matrix with a scale for each row; stands among parameters where an array stood."""

    values: jax.Array  # [..., out, in] int8
    scale: jax.Array  # [..., out] float32

    @property
    def ndim(self) -> int:
        """Of the matrix."""
        return self.values.ndim


Weight = jax.Array | Int8


def quantised(weight: jax.Array) -> Int8:
    """The nearest such matrix, row by row.

    Args:
      weight: [..., out, in], finite.
    """
    wide = weight.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=-1)
    scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
    return Int8(jnp.round(wide / scale[..., None]).astype(jnp.int8), scale)


def cast(weight: Weight, dtype) -> Weight:
    """The weight in a dtype; one in eight bits stays as it is, and is cast where it is read."""
    return weight if isinstance(weight, Int8) else weight.astype(dtype)


def in_eight_bits(params: Params) -> Params:
    """The parameters of a decoder with its large matrices so: projections, embedding and heads.

    Norms, biases, LoRA, what streams add and Medusa heads, which are small or feed small products,
    stay as they are.

    Args:
      params: scanned or unrolled, on any mesh; to be called by all processes.
    """
    return jax.jit(functools.partial(_changed, change=quantised))(params)


def shapes_in_eight_bits(params: Params) -> Params:
    """The same of shape structs that carry shardings of a mesh."""

    def change(leaf):
        mesh, parts = leaf.sharding.mesh, (*leaf.sharding.spec, *[None] * leaf.ndim)
        scale = NamedSharding(mesh, PartitionSpec(*parts[: leaf.ndim - 1]))
        return Int8(
            jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=leaf.sharding),
            jax.ShapeDtypeStruct(leaf.shape[:-1], jnp.float32, sharding=scale),
        )

    return _changed(params, change)


def _changed(tree, change, owner=""):
    """The tree with `change` of its large matrices."""
    if not isinstance(tree, dict):
        return tree
    return {
        name: change(leaf)
        if name in _TABLES or (name == "weight" and owner.endswith("_proj"))
        else _changed(leaf, change, name)
        for name, leaf in tree.items()
    }


def rows_of(table: Weight, tokens: jax.Array, dtype) -> jax.Array:
    """Rows [..., D] of a table at tokens [...], in dtype."""
    if not isinstance(table, Int8):
        return jnp.take(table, tokens, axis=0).astype(dtype)
    values, on_one_device = table.values, jax.sharding.get_abstract_mesh().size <= 1
    if on_one_device and tokens.size <= _FEW_ROWS and values.shape[0] % _TILE == 0:
        tiles = jnp.take(values.reshape(-1, _TILE, values.shape[1]), tokens // _TILE, axis=0)
        is_asked = (jnp.arange(_TILE) == tokens[..., None] % _TILE)[..., None]
        rows = jnp.where(is_asked, tiles.astype(jnp.float32), 0).sum(axis=-2)
    else:
        rows = jnp.take(values, tokens, axis=0).astype(jnp.float32)
    return (rows * jnp.take(table.scale, tokens, axis=0)[..., None]).astype(dtype)

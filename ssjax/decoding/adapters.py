"""Rows of one batch that are fine-tuned differently: one base, an adapter of each row's own.

    stack       leaves [A, ...]      every adapter that is loaded, of one form
    of_rows     leaves [B, ...]      gathered by the adapter ids of the rows, once for some passes
    by_row      a call of the model for each row under `jax.vmap`: products with weights of the base
                stay one product for all rows (`models.projection`), those with LoRA are small and
                batched

An adapter is the leaves that are ours (`lora.is_new`): LoRA, stream embeddings, what parents and
roots add. Whatever needs none of them, such as the LM head, reads the base.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.models.attention import KV
from ssjax.models.parameters import Params, merge


@struct.dataclass
class RowParams:
    """The parameters of B rows."""

    base: Params
    own: Params  # [B, ...]; of scanned layers [L, B, ...], as the scan takes them
    has_streams: jax.Array  # [B] bool; rows without get no draft from streams

    def by_row(self, function: Callable, *args, **kwargs) -> Any:
        """function(params, *args, **kwargs) of every row alone, as a batch of one.

        Args:
          function: returns arrays of a batch.
          args, kwargs: arrays of B rows, or of one that holds for all, in trees of any kind; and
            whatever is no array, as it is.
        """
        leaves, structure = jax.tree.flatten((args, kwargs))
        axes = jax.tree.leaves(_batch_axes((args, kwargs)))
        arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}
        num_rows = self.has_streams.shape[0]
        mapped = {i: axes[i] if x.shape[axes[i]] == num_rows else None for i, x in arrays.items()}

        def of_one(own, arrays):
            arrays = {
                i: x if mapped[i] is None else jnp.expand_dims(x, mapped[i])
                for i, x in arrays.items()
            }
            args, kwargs = structure.unflatten([arrays.get(i, x) for i, x in enumerate(leaves)])
            output = function(merge(own, self.base), *args, **kwargs)
            return jax.tree.map(jnp.squeeze, output, _batch_axes(output))

        output = jax.vmap(of_one, in_axes=(_layers_first(self.own), mapped))(self.own, arrays)
        return jax.tree.map(lambda x, axis: jnp.moveaxis(x, 0, axis), output, _batch_axes(output))


@struct.dataclass
class AdapterStack:
    """The parameters of a model with A adapters."""

    base: Params
    stacked: Params  # [A, ...]
    has_streams: jax.Array  # [A] bool

    def of_rows(self, ids: jax.Array) -> RowParams:
        """ids: [B] int32, which adapter each row has."""

        def rows(leaf, axis):
            return jnp.moveaxis(jnp.take(leaf, ids, axis=0), 0, axis)

        own = jax.tree.map(rows, self.stacked, _layers_first(self.stacked))
        return RowParams(self.base, own, jnp.take(self.has_streams, ids))


AnyParams = Params | AdapterStack | RowParams


def of_rows(params: AnyParams, ids: jax.Array | None) -> Params | RowParams:
    """The parameters as passes take them. ids: [B] int32; needed for a stack alone."""
    return params.of_rows(ids) if isinstance(params, AdapterStack) else params


def with_params(params: Params | RowParams, function: Callable, *args, **kwargs) -> Any:
    """function(params, *args, **kwargs); where rows differ, of each of them, see `by_row`."""
    if isinstance(params, RowParams):
        return params.by_row(function, *args, **kwargs)
    return function(params, *args, **kwargs)


def shared_params(params: Params | RowParams) -> Params:
    """What is the same for all rows."""
    return params.base if isinstance(params, RowParams) else params


def _layers_first(params: Params) -> Params:
    """For every leaf the axis of its rows: 1 in scanned layers, 0 elsewhere."""
    return {
        name: jax.tree.map(lambda _: 1, value)
        if name == "layers"
        else (_layers_first(value) if isinstance(value, dict) else 0)
        for name, value in params.items()
    }


def _batch_axes(tree: Any) -> Any:
    """For every leaf of arguments or outputs of the model the axis of the batch."""

    def axis(part):
        is_stacked = isinstance(part, KV) and part.keys.ndim == 5
        return jax.tree.map(lambda _: int(is_stacked), part)

    return jax.tree.map(axis, tree, is_leaf=lambda x: isinstance(x, KV))

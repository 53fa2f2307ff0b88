"""Parameter trees: conversion between scanned and unrolled layers, splitting, counting.

A parameter tree is a plain nested dict. Each stack of layers ("trunk", "stream_layers")
holds either one "layers" entry whose leaves have a leading layer axis (scanned form), or
"layers_0", "layers_1", ... (unrolled form). Checkpoints hold the scanned form.
"""

from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]

_STACKS = ("trunk", "stream_layers")


def unstack_layers(params: Params) -> Params:
    """Converts the scanned form to the unrolled one. Call it once, outside `jit`."""

    def unstack(stack):
        stacked = stack["layers"]
        num_layers = jax.tree.leaves(stacked)[0].shape[0]
        return {
            f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(num_layers)
        }

    return {k: unstack(v) if k in _STACKS else v for k, v in params.items()}


def stack_layers(params: Params) -> Params:
    """Converts the unrolled form to the scanned one; the inverse of `unstack_layers`."""

    def stack(layers):
        ordered = [layers[f"layers_{i}"] for i in range(len(layers))]
        return {"layers": jax.tree.map(lambda *xs: jnp.stack(xs), *ordered)}

    return {k: stack(v) if k in _STACKS else v for k, v in params.items()}


def merge(trainable: Params, frozen: Params) -> Params:
    """Joins two trees with disjoint leaves into the tree that the model is applied to.

    Raises:
      ValueError: both trees hold the same leaf.
    """
    merged = dict(frozen)
    for key, value in trainable.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(merged[key], dict):
            merged[key] = merge(value, merged[key])
        else:
            raise ValueError(f"parameter {key!r} is both trainable and frozen")
    return merged


def cast(params: Params, dtype) -> Params:
    """Returns the tree with every leaf in `dtype`; for decoding in the compute dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def count(params: Params) -> int:
    """Number of scalars in the tree (arrays or shape structs)."""
    return sum(x.size for x in jax.tree.leaves(params))

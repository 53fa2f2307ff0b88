"""Buffers that old files carry beside the weights: values that follow from config.json."""

import dataclasses

import ml_dtypes
import numpy as np

from ssjax.config import ModelConfig
from ssjax.models.attention import rotary_frequencies
from ssjax.weights.slices import DTYPES
from ssjax.weights.tensor_files import StoredTensor


def holds_what_is_computed(stored: StoredTensor, config: ModelConfig) -> bool | None:
    """Whether a buffer says no more than the config. None: it is no such buffer."""
    for end, check in _BUFFERS.items():
        if f".{stored.name}".endswith(end):
            return check(stored, config)
    return None


def _are_frequencies(stored: StoredTensor, config: ModelConfig) -> bool:
    """Of rotary positions; before transformers 4.38 they were stored before they were scaled."""
    if config.positions != "rotary" or stored.value_dtype not in DTYPES:
        return False
    unscaled = rotary_frequencies(dataclasses.replace(config, rope_scaling="none"), False)
    found = stored.read_whole().astype(np.float32)
    # As exact as the dtype; small ones of float16 are subnormal.
    tolerance = max(1e-5, 2 * float(ml_dtypes.finfo(DTYPES[stored.value_dtype]).eps))
    return any(
        found.shape == wanted.shape and np.allclose(found, wanted, rtol=tolerance, atol=1e-7)
        for wanted in (unscaled, rotary_frequencies(config, False))
    )


def _is_causal_mask(stored: StoredTensor, config: ModelConfig) -> bool:
    """1 where a position sees another, [1, 1, T, T]."""
    del config
    shape = stored.shape
    if len(shape) != 4 or shape != (1, 1, shape[-1], shape[-1]):
        return False
    return np.array_equal(stored.read_whole()[0, 0] != 0, np.tri(shape[-1], dtype=bool))


def _is_mask_value(stored: StoredTensor, config: ModelConfig) -> bool:
    """What was added in place of a masked score."""
    del config
    return stored.shape == () and float(stored.read_whole()) <= -1e4


# By the end of their names.
_BUFFERS = {
    ".rotary_emb.inv_freq": _are_frequencies,
    ".attn.bias": _is_causal_mask,
    ".attn.masked_bias": _is_mask_value,
}

"""LoRA: which projections have it, for which rows, and how it is folded into the weights.

A projection with LoRA has two more leaves beside its weight [out, in]:

    y = W x + alpha / rank * B A dropout(x)      lora_a [rank, in], lora_b [out, rank]

lora_b starts at zero, so an untrained adapter changes nothing. In the lossless mode only
stream rows get the second term: main rows are computed by the base weights alone, in the same
product as without LoRA, and so are bit-identical to the base model's.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssjax.config import AdaptationConfig
from ssjax.models.parameters import Params, split

_NEW_LEAVES = (
    "stream_embedding",
    "stream_init_down",
    "stream_init_up",
    "stream_root_down",
    "stream_root_up",
    "parent_down",
    "parent_query",
    "parent_gate",
    "parent_up",
    "exit_down",
    "exit_up",
    "medusa_weight",
    "medusa_bias",
    "medusa_head",
)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The adapters of one stack of layers."""

    rank: int
    scale: float  # alpha / rank
    dropout: float
    targets: tuple[str, ...]
    stream_rows_only: bool


def trunk_lora(adaptation: AdaptationConfig) -> LoRA | None:
    """The adapters below the streams."""
    return _lora(adaptation) if adaptation.mode == "shared" else None


def stream_layers_lora(adaptation: AdaptationConfig, num_streams: int) -> LoRA | None:
    """The adapters of the layers that run the streams."""
    without_rows = adaptation.mode == "lossless" and num_streams == 0
    return None if adaptation.mode == "full" or without_rows else _lora(adaptation)


def _lora(adaptation):
    return LoRA(
        rank=adaptation.rank,
        scale=adaptation.alpha / adaptation.rank,
        dropout=adaptation.dropout,
        targets=adaptation.targets,
        stream_rows_only=adaptation.mode == "lossless",
    )


def is_lora(path: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to an adapter."""
    return path[-1] in ("lora_a", "lora_b")


def is_new(path: tuple[str, ...]) -> bool:
    """Whether a leaf is ours, that is, not part of a base model."""
    return path[0] in _NEW_LEAVES or is_lora(path)


def split_trainable(params: Params, adaptation: AdaptationConfig) -> tuple[Params, Params]:
    """Returns (trainable, frozen); disjoint, together the whole tree."""
    if adaptation.mode == "full":
        return params, {}
    return split(params, is_new)


def merge_lora(params: Params, adaptation: AdaptationConfig) -> Params:
    """Folds the adapters of the shared mode into the weights: W + alpha / rank * B A.

    The result is a tree of the full mode: the adapters are gone, the logits the same up to
    rounding. Works on both layer forms.

    Raises:
      ValueError: the mode is lossless, whose adapters do not act on main rows.
    """
    if adaptation.mode == "full":
        return params
    if adaptation.mode == "lossless":
        raise ValueError("adapters of stream rows alone cannot be folded into shared weights")
    scale = adaptation.alpha / adaptation.rank

    def fold(tree):
        if not isinstance(tree, dict):
            return tree
        if "lora_a" not in tree:
            return {key: fold(value) for key, value in tree.items()}
        rest = {key: value for key, value in tree.items() if key not in ("lora_a", "lora_b")}
        return rest | {"weight": _folded(tree["weight"], tree["lora_a"], tree["lora_b"], scale)}

    return fold(params)


@jax.jit
def _folded(weight, lora_a, lora_b, scale):
    update = jnp.matmul(
        lora_b.astype(jnp.float32), lora_a.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return (weight.astype(jnp.float32) + scale * update).astype(weight.dtype)

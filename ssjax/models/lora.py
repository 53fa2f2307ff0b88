"""LoRA: which projections have it, for which rows, and how it is folded into the weights.

A projection with LoRA has two more leaves beside its weight [out, in]:

    y = W x + alpha / rank * B A dropout(x)      lora_a [rank, in], lora_b [out, rank]

lora_b starts at zero, so an untrained adapter changes nothing. A mode says which adapters each kind
of row has, by the names of their leaves:

    mode        main rows   stream rows
    shared      lora        lora
    lossless    -           lora
    detached    lora        lora, stream_lora

Where main rows have none they are computed by the base weights alone, in the same product as
without LoRA, and so are bit-identical to the base model's. In the detached mode stream rows use
the adapter of main rows as they use the base weights: no gradient flows into it, nor into what they
read of main rows (their hidden states at the anchors, their keys and values). So no bit of the
gradient of that adapter depends on streams, and the fine-tune is that of a run without them.
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
    main: tuple[str, ...]  # adapters of main rows; adapter "x" has the leaves x_a and x_b
    streams: tuple[str, ...]  # of stream rows; those of main rows first, if they have them

    @property
    def detached(self) -> bool:
        """Whether stream rows use what is trained on main rows alone."""
        return bool(self.main) and self.main != self.streams


def trunk_lora(adaptation: AdaptationConfig) -> LoRA | None:
    """The adapters below the streams."""
    without = adaptation.mode in ("full", "lossless")
    return None if without else _lora(adaptation, ("lora",), ("lora",))


def stream_layers_lora(adaptation: AdaptationConfig, num_streams: int) -> LoRA | None:
    """The adapters of the layers that run the streams."""
    mode = adaptation.mode
    if mode == "full" or (mode == "lossless" and num_streams == 0):
        return None
    own = ("stream_lora",) if is_detached(adaptation) and num_streams else ()
    return _lora(adaptation, () if mode == "lossless" else ("lora",), ("lora", *own))


def _lora(adaptation, main, streams):
    return LoRA(
        rank=adaptation.rank,
        scale=adaptation.alpha / adaptation.rank,
        dropout=adaptation.dropout,
        targets=adaptation.targets,
        main=main,
        streams=streams,
    )


def is_detached(adaptation: AdaptationConfig) -> bool:
    """Whether what drafts is trained beside the model, on stopped gradients."""
    return adaptation.mode == "detached"


def for_drafts(hidden: jax.Array, adaptation: AdaptationConfig) -> jax.Array:
    """Hidden states of main rows as streams or heads read them: without a gradient, if detached."""
    return jax.lax.stop_gradient(hidden) if is_detached(adaptation) else hidden


def is_lora(path: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to an adapter."""
    return path[-1] in ("lora_a", "lora_b", "stream_lora_a", "stream_lora_b")


def is_of_main_rows(path: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to the adapter of main rows; of the shared and the detached mode."""
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
    """Folds the adapters of main rows, if they have any, into the weights: W + alpha / rank * B A.

    The result is a tree of `merged_adaptation`: the logits are the same up to rounding. Works on
    both layer forms.
    """
    if merged_adaptation(adaptation) == adaptation:
        return params
    scale = adaptation.alpha / adaptation.rank

    def fold(tree):
        if not isinstance(tree, dict):
            return tree
        if "lora_a" not in tree:
            return {key: fold(value) for key, value in tree.items()}
        rest = {
            key.removeprefix("stream_"): value
            for key, value in tree.items()
            if not is_of_main_rows((key,))
        }
        return rest | {"weight": _folded(tree["weight"], tree["lora_a"], tree["lora_b"], scale)}

    return fold(params)


def merged_adaptation(adaptation: AdaptationConfig) -> AdaptationConfig:
    """What is left once `merge_lora` has folded the adapters of main rows into the weights.

    Of the shared mode nothing, of the detached mode the lossless one over the fine-tuned weights.
    """
    if adaptation.mode == "shared":
        return AdaptationConfig()
    if is_detached(adaptation):
        return dataclasses.replace(adaptation, mode="lossless")
    return adaptation


@jax.jit
def _folded(weight, lora_a, lora_b, scale):
    update = jnp.matmul(
        lora_b.astype(jnp.float32), lora_a.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return (weight.astype(jnp.float32) + scale * update).astype(weight.dtype)

"""Which model weights are, however they are held.

`models.parameters.fingerprint` tells every bit, and with that where the layers are split and which
dtype they are in. Two uses of one base differ in both; the digest here is the same.
"""

import hashlib

import jax
import jax.numpy as jnp

from ssjax.models import lora
from ssjax.models.parameters import Params, flatten, mixed_sum, split
from ssjax.weights.load import Trained

_STACKS = ("trunk/layers/", "stream_layers/layers/")


def identity(params: Params) -> str:
    """A digest of a model without its streams, 32 hex digits.

    Of values in bfloat16, whatever they are held in, and layer by layer, so that the split between
    trunk and stream layers does not matter. Accidents are seen, malice is not.

    Args:
      params: scanned form, on any mesh; to be called by all processes. Leaves that belong to
        streams, and LoRA, are not looked at.
    """
    base, _ = split(params, lambda path: not lora.is_new(path))
    found = jax.device_get(jax.jit(_sums)(flatten(base)))
    whole: dict[str, list[int]] = {}
    for stack in ("", *_STACKS):  # layers of the trunk come first
        for name, sums in sorted(found.items()):
            own = next((other for other in _STACKS if name.startswith(other)), "")
            if own == stack:
                whole.setdefault(name.removeprefix(own), []).extend(map(int, sums))
    described = [f"{name} {sums}" for name, sums in sorted(whole.items())]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:32]


def identity_of(trained: Trained) -> str:
    """That of the model that decodes: with the adapters of the shared mode folded in."""
    params = trained.params
    if trained.config.adaptation.mode == "shared":
        params = lora.merge_lora(params, trained.config.adaptation)
    return identity(params)


def _sums(leaves):
    """Of each leaf a sum, of stacked ones a sum for each layer; [layers or 1] uint32."""

    def one(values):
        bits = jax.lax.bitcast_convert_type(values.astype(jnp.bfloat16), jnp.uint16)
        places = [
            jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) for axis in range(bits.ndim)
        ]
        return mixed_sum(bits.astype(jnp.uint32), places)

    return {
        name: jax.vmap(one)(leaf) if name.startswith(_STACKS) else one(leaf)[None]
        for name, leaf in leaves.items()
    }

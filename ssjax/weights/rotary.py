"""What a config.json says about rotary positions: fields of `ModelConfig`.

Every function raises UserError where a key is missing or has a value that we do not compute, naming
both.
"""

import math
from typing import Any

from ssjax.config.ranges import INT32_MAX
from ssjax.files.objects import Fields

LAYER_TYPES = ("full_attention", "sliding_attention")


def settings(values: Fields, now: Fields) -> Fields:
    """The group of rotary settings: `now` since transformers 5, before that "rope_scaling"."""
    before = values.group("rope_scaling")
    if not before.values or before.values == now.values:
        return now
    if now.values:
        raise values.wrong("rope_scaling", f'what "{now.prefix.removesuffix(".")}" says')
    return before


def scaled_fields(values: Fields, rope: Fields, theta: float = 10_000.0) -> dict[str, Any]:
    """Fields of the rotary positions, scaled as in nearly all families or not at all.

    Args:
      values: the whole config, where older files have the base.
      rope: the group of these settings.
      theta: the base where neither has it.
    """
    for layers in LAYER_TYPES:
        if rope.has(layers):
            raise rope.wrong(layers, "left out: all layers have the same rotary positions here")
    key, kind = _kind(rope)
    fields = _unscaled(values, rope, theta)
    if kind == "default":
        rope.refuse(factor=1)  # a factor that nothing says the meaning of
        return fields
    if kind not in ("linear", "llama3"):
        raise rope.wrong(key, "default, linear or llama3: no other scaling is supported")
    factor = rope.number("factor")
    fields |= {"rope_scaling": kind, "rope_factor": factor}
    if kind == "linear":  # the number is that before scaling; llama3 and Gemma 3 have scaled it
        fields["max_positions"] = int(min(fields["max_positions"] * factor, INT32_MAX))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            raise rope.wrong("high_freq_factor", f'above "low_freq_factor" {low:g}')
        fields |= {"rope_low_freq_factor": low, "rope_high_freq_factor": high}
        fields["rope_original_positions"] = _original_positions(values, rope)
    return fields


def whole_head_fields(values: Fields, theta: float = 10_000.0) -> dict[str, Any]:
    """Rotary positions of whole heads, the same in all layers; theta: where the config has none."""
    rope = settings(values, values.group("rope_parameters"))
    for group in (values, rope):
        group.refuse(partial_rotary_factor=1)
    return scaled_fields(values, rope, theta)


def long_fields(values: Fields, rope: Fields, rotary_dim: int) -> dict[str, Any]:
    """Fields of the rotary positions of Phi-3: unscaled, or a factor for each pair of channels.

    A file has two sets of factors. transformers takes the short ones for a sequence of up to
    `original_max_position_embeddings` tokens, and for a longer one the long ones for all of its
    tokens: it computes what it has cached anew. Here the short ones are read, and a longer sequence
    is refused (`ModelConfig.longest_sequence`), so that whatever is computed is the same.

    Args:
      values: the whole config.
      rope: the group of these settings.
      rotary_dim: channels of a head that are rotated.
    """
    key, kind = _kind(rope)
    fields = _unscaled(values, rope, 10_000.0)
    if kind == "default":
        rope.refuse(factor=1)
        return fields
    if kind != "longrope":
        raise rope.wrong(key, "default or longrope: no other scaling is supported")
    # The group may have it too; transformers takes this one, or its default.
    original = values.whole("original_max_position_embeddings", 4096, least=2)
    factor = rope.number("factor", values.whole("max_position_embeddings", 4096) / original)
    stretch = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    rope.numbers("long_factor", rotary_dim // 2)
    return fields | {
        "rope_scaling": "longrope",
        "rope_factors": rope.numbers("short_factor", rotary_dim // 2),
        "rope_attention_factor": rope.number("attention_factor", stretch),
        "rope_original_positions": original,
    }


def width_of(values: Fields, rope: Fields, head_dim: int, share: float) -> int:
    """The leading part of a head that is rotated; the share where the config does not say it."""
    key = "partial_rotary_factor"
    owner = rope if rope.has(key) else values
    rotary_dim = int(head_dim * owner.number(key, share, most=1.0))
    if rotary_dim < 2 or rotary_dim % 2:
        raise owner.wrong(key, f"such that it gives an even part of {head_dim}")
    return rotary_dim


def _kind(rope: Fields) -> tuple[str, str]:
    """The kind of scaling, after the key that says it."""
    key = "rope_type" if rope.has("rope_type") else "type"
    return key, rope.text(key, "default")


def _unscaled(values: Fields, rope: Fields, theta: float) -> dict[str, Any]:
    theta = rope.number("rope_theta", values.number("rope_theta", theta))
    return {"rope_theta": theta, "max_positions": values.whole("max_position_embeddings", 0)}


def _original_positions(values: Fields, rope: Fields) -> int:
    """As in transformers, one beside the group goes first."""
    key = "original_max_position_embeddings"
    if values.has(key):
        return values.whole(key)
    return rope.whole(key) if rope.has(key) else values.whole("max_position_embeddings")

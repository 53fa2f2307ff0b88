"""The rows of a call: where they stand and what they may see.

A call carries main rows and stream rows in one array [B, X, D] with X = T + A*J: the T main rows
first, then J stream rows at each of A anchors. What the rows of T = 3 tokens with J = 2 streams at
the anchor t1 see, x = visible, with two valid slots of the cache:

                     cache       main block   streams of t1
                     0 1 2 3     t0 t1 t2     1  2
    main t0          x x . .     x  .  .      .  .
    main t1          x x . .     x  x  .      .  .       (x  x if main rows read streams)
    main t2          x x . .     x  x  x      .  .
    stream 1 of t1   x x . .     x  x  .      x  .
    stream 2 of t1   x x . .     x  x  .      x  x

    main rows        main_prefix    main_mask      (anchors)
    stream rows      stream_prefix  stream_mask    always a triangle, see `layers.Attention`

In layers with a window a row sees no key that lies `window` or more positions before it; a stream
stands for its anchor there.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.config import ModelConfig
from ssjax.models.attention import Causal, rotary_frequencies, rotary_tables


@struct.dataclass
class Layout:
    """What the layers of one kind know of the rows, see the drawing above.

    Deferred streams are the call with num_main = 0: their main keys come from an earlier
    call as `block`.
    """

    cos: jax.Array | None  # [B, X, W/2] float32, rotary tables of all rows; None: not rotary
    sin: jax.Array | None  # [B, X, W/2] float32
    main_mask: jax.Array | None  # [B or 1, T, T] bool: main rows over the main block
    stream_mask: jax.Array | None  # [B, A, T] bool: stream rows over the main block
    main_prefix: jax.Array | None  # [B, 1 or T, S] bool: main rows over the cache
    stream_prefix: jax.Array | None  # [B, 1 or A, S] bool: stream rows over the cache
    anchors: jax.Array | None  # [B, A] int32, set where main rows read their streams
    segments: jax.Array | None  # [B, T] int32, of packed rows; set where `fused`
    num_main: int = struct.field(pytree_node=False)  # T, or 0
    num_streams: int = struct.field(pytree_node=False)  # J, or 0
    value_angle: float = struct.field(pytree_node=False)  # the values of stream j turn by j of it
    dropout: bool = struct.field(pytree_node=False)  # training: LoRA drops inputs
    fused: bool = struct.field(pytree_node=False)  # main rows by a kernel, main_mask unused


@dataclasses.dataclass(frozen=True, order=True)
class LayerKind:
    """What may differ from layer to layer."""

    is_local: bool  # it sees a window only
    is_unrotated: bool  # its queries and keys have no rotary positions


def layer_kinds(config: ModelConfig) -> tuple[LayerKind, ...]:
    """The kind of every layer."""
    local, unrotated = set(config.local_layers), set(config.no_rope_layers)
    return tuple(LayerKind(i in local, i in unrotated) for i in range(config.num_layers))


def kinds_in_use(config: ModelConfig) -> tuple[LayerKind, ...]:
    """The kinds that the layers of a model have, in the order of their layouts."""
    return tuple(sorted(set(layer_kinds(config))))


@dataclasses.dataclass(frozen=True)
class MainRows:
    """The T main rows of a call, and what they see of their own block."""

    positions: jax.Array  # [B, T] int32
    mask: jax.Array | None  # [B or 1, T, T] bool; None if `fused`
    segments: jax.Array | None = None  # [B, T] int32, of packed rows; set where `fused`
    fused: bool = False  # a kernel computes them


@dataclasses.dataclass(frozen=True)
class StreamRows:
    """J stream rows at each of A anchors, and what these see of the main block."""

    positions: jax.Array  # [B, A] int32, of the anchors
    mask: jax.Array  # [B, A, T] bool
    num_streams: int  # J, at least 1
    anchors: jax.Array | None = None  # [B, A] int32, set where main rows read their streams
    value_angle: float = 0.0  # the values of stream j turn by j of it


@dataclasses.dataclass(frozen=True)
class Keys:
    """What there is to see besides a stream's own streams."""

    positions: jax.Array  # [B, T] int32, of the main block
    prefix_mask: jax.Array | None  # [B, 1, S] bool, valid slots of the cache; None: no cache


def make_layouts(
    config: ModelConfig,
    main: MainRows | None,
    streams: StreamRows | None,
    keys: Keys,
    dropout: bool,
) -> tuple[Layout, ...]:
    """The `Layout` of every kind of layers, as `kinds_in_use` orders them.

    All in the same shapes, so that a scanned layer can choose between them.

    Args:
      config: of the model.
      main: None: streams of an earlier call's main rows.
      streams: None: no streams run.
      keys: that both see.
      dropout: LoRA drops inputs.
    """
    rows = _positions(main, streams)

    def layout(kind, masks):
        cos = sin = None
        if config.positions == "rotary":
            frequencies = rotary_frequencies(config, kind.is_local)
            cos, sin = rotary_tables(rows, frequencies, config.rope_attention_factor)
        if cos is not None and kind.is_unrotated:
            cos, sin = jnp.ones_like(cos), jnp.zeros_like(sin)  # x * 1 - y * 0 is x, to the bit
        return Layout(
            cos=cos,
            sin=sin,
            **masks,
            anchors=streams and streams.anchors,
            segments=main and main.segments,
            num_main=main.positions.shape[1] if main else 0,
            num_streams=streams.num_streams if streams else 0,
            value_angle=streams.value_angle if streams else 0.0,
            dropout=dropout,
            fused=main is not None and main.fused,
        )

    everywhere = {
        "main_mask": main and main.mask,
        "stream_mask": streams and streams.mask,
        "main_prefix": keys.prefix_mask,
        "stream_prefix": keys.prefix_mask,
    }
    nearby = everywhere
    if config.local_layers:
        windows = (jnp.iinfo(jnp.int32).max, config.window)
        everywhere, nearby = _masks_within(windows, main, streams, keys)
    kinds = kinds_in_use(config)
    return tuple(layout(kind, nearby if kind.is_local else everywhere) for kind in kinds)


def rows_of_mask(mask: jax.Array | Causal, anchors: jax.Array, num_tokens: int) -> jax.Array:
    """What the anchors see, [B, A, T] bool.

    Args:
      mask: of T main rows, [B or 1, T, T] bool or `Causal`.
      anchors: [B, A] int32, which of the rows.
      num_tokens: T.
    """
    if isinstance(mask, Causal):
        return mask.rows(anchors, num_tokens)
    if mask.shape[0] == 1:
        return jnp.take(mask[0], anchors, axis=0)
    return jnp.take_along_axis(mask, anchors[:, :, None], axis=1)


def choose(layouts: tuple[Layout, ...], number: jax.Array | int) -> Layout:
    """The layout of this number; an array where a layer's is known at run time."""
    if isinstance(number, int):
        return layouts[number]
    chosen = layouts[0]
    for other, layout in enumerate(layouts[1:], start=1):
        is_it = number == other
        chosen = jax.tree.map(lambda x, y, is_it=is_it: jnp.where(is_it, y, x), chosen, layout)
    return chosen


def _positions(main, streams):
    """The position of every row, [B, X] int32: stream j stands j after its anchor."""
    rows = [] if main is None else [main.positions]
    if streams is not None:
        ahead = streams.positions[:, :, None] + jnp.arange(1, streams.num_streams + 1)
        rows.append(ahead.reshape(ahead.shape[0], -1))
    return jnp.concatenate(rows, axis=1)


def _masks_within(windows, main, streams, keys):
    """By window, the four masks of a `Layout` without the keys that lie so far before a row."""
    prefix = keys.prefix_mask
    slots = None if prefix is None else jnp.arange(prefix.shape[-1])[None]

    def near(seen, rows, key_positions, window):
        if seen is None or rows is None:
            return None
        return seen & (rows.positions[:, :, None] - key_positions[:, None, :] < window)

    return [
        {
            "main_mask": near(main and main.mask, main, keys.positions, window),
            "stream_mask": near(streams and streams.mask, streams, keys.positions, window),
            "main_prefix": near(prefix, main, slots, window),
            "stream_prefix": near(prefix, streams, slots, window),
        }
        for window in windows
    ]

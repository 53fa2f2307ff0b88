"""Attention over segments: the one primitive of training, prefill, verification, streams.

Dimension letters used in the whole package:

    B batch rows          T query positions of a call     S cache slots
    D model width         N query heads (N = K*G)         K key/value heads
    G queries per kv head H head width                    F mlp width
    V vocabulary          L layers                        J streams (the paper's gamma)
    M draft-tree nodes, root included                     R = J + 1 nodes on a path
    A anchors: positions that carry streams               I query rows at one position

A query attends to a list of *segments* under one softmax. Each segment is scored apart and
the parts are joined by their log-sum-exp, so no concatenated keys and no T(1+J) x T(1+J)
mask is ever built, and a fused kernel could serve any one segment.

What main row t and stream rows (t, j) see (paper Eq. 1 of v1, Eq. 2), x = visible:

                  cache prefix   main block 0..t   streams 1..j of the same t
    main t             x                x                     .
    stream (t, j)      x                x                     x
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssjax.config import ModelConfig

# Added in place of masked scores. Finite, so that a fully masked segment gets weight
# exp(MASKED - lse) = 0 in the join instead of NaN.
MASKED = -1e30


@struct.dataclass
class KV:
    """Keys and values of one layer.

    Heads come before positions: both attention products then have their batch axes in
    front, and the cache is not transposed on each decode step.
    """

    keys: jax.Array  # [B, K, S, H], rotary positions applied
    values: jax.Array  # [B, K, S, H]


@struct.dataclass
class SharedSegment:
    """Keys that every query position of the row may see, subject to the mask."""

    kv: KV
    mask: jax.Array  # [B or 1, T or 1, S] bool, the same for the I rows of a position


@struct.dataclass
class Causal:
    """Every position of a block sees the positions of its own sequence up to itself.

    Rows padded on the right need no more than that. A row with several sequences numbers
    them; what a mask array would say is in `rows`.
    """

    segments: jax.Array | None = None  # [B, T] int32, the sequence of each position; None: one

    def dense(self, num_tokens: int) -> jax.Array:
        """[B or 1, T, T] bool."""
        return self.rows(jnp.arange(num_tokens)[None], num_tokens)

    def rows(self, index: jax.Array, num_tokens: int) -> jax.Array:
        """What chosen positions see. index: [B or 1, A] int32 -> [B or 1, A, T] bool."""
        seen = jnp.arange(num_tokens) <= index[:, :, None]
        if self.segments is None:
            return seen
        index = jnp.broadcast_to(index, (self.segments.shape[0], index.shape[1]))
        own = jnp.take_along_axis(self.segments, index, axis=1)
        return seen & (own[:, :, None] == self.segments[:, None])


@struct.dataclass
class LocalSegment:
    """Keys that belong to one query position: the streams beside it."""

    keys: jax.Array  # [B, T, J, K, H]
    values: jax.Array  # [B, T, J, K, H]
    mask: jax.Array  # [I, J] bool


def attend(
    q_BTIKGH: jax.Array,
    segments: list[SharedSegment | LocalSegment],
    scale: float | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """Softmax attention of every query over the union of the segments.

    Args:
      q_BTIKGH: queries, rotary positions applied, not yet scaled.
      segments: at least one; each query must see at least one key in some segment.
      scale: of the products of queries and keys; None: H ** -0.5.
      softcap: scores become softcap * tanh(scores / softcap); 0: they stay.

    Returns:
      [B, T, I, K, G, H] in the dtype of the queries. Scores and softmax are float32.
    """
    scale = q_BTIKGH.shape[-1] ** -0.5 if scale is None else scale
    scaled = q_BTIKGH * jnp.asarray(scale, q_BTIKGH.dtype)
    parts = [_attend_segment(scaled, segment, softcap) for segment in segments]
    if len(parts) == 1:
        return _heads_last(parts[0][0]).astype(q_BTIKGH.dtype)
    outputs, lses = zip(*parts, strict=True)
    lse_total = jax.nn.logsumexp(jnp.stack(lses), axis=0)
    joined = sum(
        out * jnp.exp(lse - lse_total)[..., None] for out, lse in zip(outputs, lses, strict=True)
    )
    return _heads_last(joined).astype(q_BTIKGH.dtype)


def _heads_last(x_BKTIGH):
    return jnp.moveaxis(x_BKTIGH, 1, 3)


def _attend_segment(q_BTIKGH, segment, softcap):
    """Returns the attention over one segment, [B,K,T,I,G,H] float32, and its lse [B,K,T,I,G].

    Batch axes stay in front, as the products make them: with scores as [B,T,I,K,G,S] the CPU
    transposes the largest array of the model.
    """
    precision = matmul_precision(q_BTIKGH.dtype)
    if isinstance(segment, SharedSegment):
        score, mix = "BTIKGH,BKSH->BKTIGS", "BKTIGS,BKSH->BKTIGH"
        keys, values = segment.kv.keys, segment.kv.values
        mask = segment.mask[:, None, :, None, None, :]
    else:
        score, mix = "BTIKGH,BTJKH->BKTIGJ", "BKTIGJ,BTJKH->BKTIGH"
        keys, values = segment.keys, segment.values
        mask = segment.mask[:, None, :]
    scores = jnp.einsum(
        score, q_BTIKGH, keys, precision=precision, preferred_element_type=jnp.float32
    )
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask, scores, MASKED)
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = weights.sum(axis=-1)
    out = jnp.einsum(
        mix,
        weights.astype(values.dtype),
        values,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return out / total[..., None], peak[..., 0] + jnp.log(total)


def matmul_precision(dtype) -> jax.lax.Precision:
    """Float32 means float32: TPU and GPU otherwise multiply float32 in fewer bits.

    The promise that speculative output equals plain output rests on it.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def rotary_frequencies(config: ModelConfig, local: bool) -> np.ndarray:
    """Angles per position of the rotated pairs, float32 [rotary_dim / 2].

    Args:
      config: of the model.
      local: for the layers in config.local_layers.
    """
    width = config.rotary_dim or config.head_dim
    own_theta = local and config.rope_local_theta
    theta = config.rope_local_theta if own_theta else config.rope_theta
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    periods = np.float32(theta) ** exponent
    if config.rope_scaling == "longrope" and not own_theta:
        periods = np.array(config.rope_factors, np.float32) * periods
    frequencies = (1.0 / periods).astype(np.float32)
    if config.rope_scaling in ("none", "longrope") or own_theta:
        return frequencies
    if config.rope_scaling == "linear":
        return frequencies / np.float32(config.rope_factor)
    return _llama3_frequencies(frequencies, config)


def _llama3_frequencies(frequencies, config):
    """Llama 3.1: long wavelengths are stretched by the factor, short ones kept, smooth between."""
    wavelength = 2 * np.pi / frequencies
    original = config.rope_original_positions
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    stretched = frequencies / config.rope_factor
    return ((1 - smooth) * stretched + smooth * frequencies).astype(np.float32)


def rotary_tables(positions: jax.Array, frequencies: np.ndarray, factor: float = 1.0) -> tuple:
    """Cosine and sine of the rotary angles, float32, each positions.shape + frequencies.shape.

    Args:
      positions: of rows, any shape.
      frequencies: angles per position, float32.
      factor: that both are multiplied by, and so what is rotated by them.
    """
    angle = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def rotate_stream_values(values_BTJKH: jax.Array, angle: float) -> jax.Array:
    """Turns the values of stream j = 1..J by j * angle: V_j e^(i * angle * j), paper v1 Eq. 7.

    Which channels make a complex number is not given there; here those that `apply_rotary` pairs,
    all of the head width. The angle is the same for every pair and every position.
    """
    num_streams, width = values_BTJKH.shape[2], values_BTJKH.shape[-1]
    turns = jnp.arange(1, num_streams + 1)[None, None, :]
    cos, sin = rotary_tables(turns, np.full(width // 2, angle, np.float32))
    return apply_rotary(values_BTJKH, cos, sin)


def apply_rotary(x_BXNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + W/2) of the first W of H, the half-split form of Hugging Face.

    Args:
      x_BXNH: queries or keys.
      cos, sin: [B, X, W/2] from `rotary_tables`, W the rotated width.
    """
    half = cos.shape[-1]
    wide = x_BXNH.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    if rest.shape[-1]:
        rotated.append(rest)
    return jnp.concatenate(rotated, axis=-1).astype(x_BXNH.dtype)

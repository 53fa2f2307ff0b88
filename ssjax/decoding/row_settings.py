"""Settings that differ by row: arrays of the state, so that none of them compiles anything.

Where all rows are drawn alike, as in a batch of `Decoder.generate`, the settings are those of the
spec, and what is off is no part of the program (`sampling.py`). Here every cut is part of it. The
draws are the same to the token: the same noise, the same thresholds. Work is done for what some
row asks for: where all are greedy, as much as in a greedy program.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssjax.decoding.sampling import (
    Sampling,
    best_logits,
    cut_by_mass,
    cut_by_rank,
    first_argmax,
)
from ssjax.decoding.tree import NO_TOKEN
from ssjax.models.attention import MASKED

_NO_ID = NO_TOKEN - 1  # fills eos_ids; never drawn, not even where nothing can be


@struct.dataclass
class RowSettings:
    """How each row is drawn and what ends it. Fields as in `Sampling`."""

    temperature: jax.Array  # [B] float32; 0: greedy
    top_k: jax.Array  # [B] int32; 0: all
    top_p: jax.Array  # [B] float32; 1: all
    log_min_p: jax.Array  # [B] float32; -inf: all
    eos_ids: jax.Array  # [B, E] int32; ids that no model has where a row has fewer than E
    drafting: jax.Array  # [B] bool; false: the row gets no drafts


def settings_of(
    sampling: Sampling, eos_ids: Sequence[int], num_eos_ids: int, *, drafting: bool
) -> RowSettings:
    """The settings of one row, as NumPy arrays with B = 1.

    Args:
      sampling: its penalties, bans and fewest tokens are not looked at: those stay with the spec.
      eos_ids: ids that end the row; none is allowed.
      num_eos_ids: E, at least len(eos_ids).
      drafting: the row is drafted for.
    """
    ids = [*eos_ids, *[_NO_ID] * (num_eos_ids - len(eos_ids))]
    return RowSettings(
        temperature=np.array([sampling.temperature], np.float32),
        top_k=np.array([sampling.top_k], np.int32),
        top_p=np.array([sampling.top_p], np.float32),
        log_min_p=np.array([math.log(sampling.min_p) if sampling.min_p else -np.inf], np.float32),
        eos_ids=np.array([ids], np.int32),
        drafting=np.array([drafting]),
    )


def warp_by_row(logits: jax.Array, settings: RowSettings) -> jax.Array:
    """As `sampling.warp`, of rows that ask for different cuts.

    Args:
      logits: [B, M, V] float32, adjusted.
      settings: of B rows; what comes of those with temperature 0 is of no use.
    """
    temperature, top_k, top_p, log_min_p = (
        x[:, None, None]
        for x in (settings.temperature, settings.top_k, settings.top_p, settings.log_min_p)
    )
    sampled = temperature > 0
    logits = logits / jnp.where(sampled, temperature, 1)

    # Rows that ask for no cut are given one that is cheap, which is not used.
    ranked = sampled & (top_k > 0) & (top_k < logits.shape[-1])
    massed = sampled & (top_p < 1)

    def cut(logits):
        best = best_logits(logits)
        by_rank = cut_by_rank(logits, best, jnp.where(ranked, top_k, 1))
        logits, best = (
            jnp.where(ranked, cut, whole)
            for cut, whole in zip(by_rank, (logits, best), strict=True)
        )
        return jnp.where(massed, cut_by_mass(logits, best, jnp.where(massed, top_p, 0)), logits)

    logits = jax.lax.cond((ranked | massed).any(), cut, lambda x: x, logits)
    lowest_kept = logits.max(axis=-1, keepdims=True) + log_min_p
    return jnp.where(logits < lowest_kept, MASKED, logits)


def draw_by_row(
    adjusted: jax.Array,
    logits: jax.Array,
    depth: jax.Array,
    make_noise: Callable[[], jax.Array],
    settings: RowSettings,
) -> jax.Array:
    """As `sampling.draw`, of rows that are drawn differently; [B, M] int32.

    Args:
      adjusted, logits, depth: as there.
      make_noise: the noise [B, R, V] of `position_noise`; made only where some row is sampled.
      settings: of B rows.
    """
    finite = jnp.isfinite(logits)

    def sampled(adjusted):
        noise_BMV = jnp.take_along_axis(make_noise(), depth[:, :, None], axis=1)
        drawn_from = warp_by_row(adjusted, settings) + noise_BMV
        greedy = (settings.temperature == 0)[:, None, None]
        return first_argmax(jnp.where(greedy, adjusted, drawn_from), finite)

    some = (settings.temperature > 0).any()
    return jax.lax.cond(some, sampled, lambda x: first_argmax(x, finite), adjusted)

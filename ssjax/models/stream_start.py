"""Where streams start: the stream rows of an anchor, before the stream layers (paper Eq. 3).

    row_j = h_t + U_f D_f h_t + U_r D_r n(E_r) + e_j

h_t is the trunk's hidden state at the anchor, f the low-rank map of `streams.init_rank`, e_j the
stream embedding; each is there if the config asks for it. E_r is the embedding row of the *root*,
the token that follows the anchor: all streams speak of what comes after it. In training it is the
next token of the sequence. In decoding it has been drawn by the time that deferred streams run, so
a low-rank addition (`streams.root_rank`) can tell them. U_f and U_r are zeros at first.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.models.axes import gathered
from ssjax.models.execution import Execution
from ssjax.models.int8 import Weight
from ssjax.models.parent import normed_rows
from ssjax.models.projection import project


@struct.dataclass
class LowRank:
    """x -> U D x."""

    down: jax.Array  # D, [rank, in]
    up: jax.Array  # U, [out, rank]


@struct.dataclass
class StreamStart:
    """The parameters; None: the model has no such part."""

    embedding: jax.Array | None  # e, [J, D]
    map: LowRank | None  # f, D -> D
    root: LowRank | None  # width of the embedding table -> D
    embedder: Weight  # E, [V, table_dim or D]


def start_streams(
    start: StreamStart,
    hidden: jax.Array,
    roots: jax.Array | None,
    num_streams: int,
    execution: Execution,
) -> jax.Array:
    """Stream rows [B, A*J, D], those of an anchor together.

    Args:
      start: of a model with at least num_streams streams.
      hidden: [B, A, D] of the trunk at the anchors.
      roots: [B, A] int32, the token after each anchor; needed if start.root.
      num_streams: J.
      execution: of the model.

    Raises:
      ValueError: the streams start from their roots, and those are not known.
    """

    def mapped(low_rank, x):
        down = gathered(low_rank.down.astype(x.dtype), "rank", "embed")
        up = gathered(low_rank.up.astype(x.dtype), "embed", "rank")
        return project(project(x, down, x.dtype, execution), up, x.dtype, execution)

    rows = hidden
    if start.map is not None:
        rows = rows + mapped(start.map, hidden)
    if start.root is not None:
        if roots is None:
            raise ValueError("these streams start from their roots, which are not known here")
        table = gathered(start.embedder, "vocab", "embed")
        rows = rows + mapped(start.root, normed_rows(table, roots, hidden.dtype))
    if start.embedding is None:
        rows = jnp.repeat(rows, num_streams, axis=1)
    else:
        rows = rows[:, :, None] + start.embedding[:num_streams].astype(hidden.dtype)
    return rows.reshape(hidden.shape[0], -1, hidden.shape[-1])

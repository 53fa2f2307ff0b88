"""What the halves of a model hand to each other and to their callers."""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.models.attention import KV
from ssjax.models.cache import KVCache, block_at


@struct.dataclass
class ModelOutput:
    """What one pass computed. Hidden states are after the final norm, ready for `logits`."""

    hidden: jax.Array  # [B, T, D] main rows (table_dim wide where the table has its own width)
    stream_hidden: jax.Array | None  # [B, A, J, D], None without streams
    trunk_hidden: jax.Array  # [B, T, D] main rows where streams would start
    block: KVCache  # main keys and values of the T positions


@struct.dataclass
class TrunkOutput:
    """Main rows below the stream layers."""

    hidden: jax.Array  # [B, T, D]
    block: KV | tuple[KV, ...]  # their keys and values in the trunk, see `KVCache.trunk`
    tokens: jax.Array  # [B, T] int32, that they were computed from

    def at_positions(self, index: jax.Array) -> "TrunkOutput":
        """The rows at some of the T places alone. index: [B, P] int32."""
        kept = jnp.take_along_axis(self.hidden, index[:, :, None], axis=1)
        tokens = jnp.take_along_axis(self.tokens, index, axis=1)
        return TrunkOutput(kept, block_at(self.block, index), tokens)


@struct.dataclass
class Anchors:
    """Main rows of an earlier call that streams start from."""

    hidden: jax.Array  # [B, A, D], of `ModelOutput.trunk_hidden`
    positions: jax.Array  # [B, A] int32
    mask: jax.Array  # [B, A, T] bool, which of the T tokens of that call each of them sees
    roots: jax.Array | None = None  # [B, A] int32, tokens after them, see `StreamStart`

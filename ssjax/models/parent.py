"""The parent correction: what a stream says once the token before its own is known.

Stream j at position t speaks of token t + 1 + j and has not seen token t + j, which the draft tree
puts before it. Of all that may follow it gives the average over those tokens: on the sample
data the second stream is right in 62 % of places, and in 80 % once it is told the token (see
docs/method.md). The correction tells it, after the pass, for a few candidates at a time:

    s_j(b | a) = O_b . (z_j + B ((A n(E_a)) * (d_j + Q z_j / sqrt(D))))

z_j is the stream's hidden state, ready for the LM head; a the parent's token, b a candidate; E and
O their rows of the embedding and of the head; n the RMS norm; * a product by element. A and Q are
[rho, D], d_j is [rho] of ones and B [D, rho] of zeros at first, so an untrained correction changes
nothing. It costs 3 rho D + J rho parameters and no product over the vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.models.attention import matmul_precision
from ssjax.models.axes import gathered
from ssjax.models.head import Head, finished, head_rows
from ssjax.models.int8 import Weight, rows_of
from ssjax.models.parameters import Params

_EPSILON = 1e-6  # of the norm of an embedding row


@struct.dataclass
class ParentCorrection:
    """The parameters, and the table that parents are looked up in."""

    embedder: Weight  # E, [V, D]
    down: jax.Array  # A, [rho, D]
    query: jax.Array  # Q, [rho, D]
    gate: jax.Array  # d, [J, rho]
    up: jax.Array  # B, [D, rho]


def make_correction(params: Params) -> ParentCorrection:
    """The correction among the parameters of a model that `knows_parents`."""
    return ParentCorrection(
        embedder=gathered(params["embedder"], "vocab", "embed"),
        down=gathered(params["parent_down"], "rank", "embed"),
        query=gathered(params["parent_query"], "rank", "embed"),
        gate=params["parent_gate"],
        up=gathered(params["parent_up"], "embed", "rank"),
    )


def with_parents(correction: ParentCorrection, hidden: jax.Array, parents: jax.Array) -> jax.Array:
    """Hidden states as if the streams had seen the token before theirs.

    Args:
      correction: of at least J streams.
      hidden: [..., J, D] of streams or Medusa heads, ready for the LM head.
      parents: [..., J] int32, the token before the one that each of them predicts.

    Returns:
      [..., J, D], for the LM head or the heads' own.
    """
    low = _inner(correction, hidden, parents[..., None])[..., 0, :]
    up = correction.up.astype(hidden.dtype)
    return hidden + jnp.einsum("...r,dr->...d", low, up, precision=matmul_precision(hidden.dtype))


def candidate_logits(
    correction: ParentCorrection,
    head: Head,
    hidden: jax.Array,
    parents: jax.Array,
    candidates: jax.Array,
) -> jax.Array:
    """Logits of some candidates, each as it follows some parents.

    Args:
      correction: of at least J streams.
      head: the LM head, or the J heads' own.
      hidden: [..., J, D], as for `with_parents`.
      parents: [..., J, P] int32.
      candidates: [..., J, W] int32.

    Returns:
      [..., J, P, W] float32; at p and w the logit of candidates[..., w] that `with_parents` gives
      with parents[..., p].
    """
    dtype, precision = hidden.dtype, matmul_precision(hidden.dtype)
    float32 = {"precision": precision, "preferred_element_type": jnp.float32}
    rows = head_rows(head, candidates, dtype)
    alone = jnp.einsum("...jd,...jwd->...jw", hidden, rows, **float32)
    if head.bias is not None:
        alone = alone + head.bias[candidates].astype(jnp.float32)
    low = _inner(correction, hidden, parents)
    up = correction.up.astype(dtype)
    outer = jnp.einsum("...jwd,dr->...jwr", rows, up, precision=precision)
    change = jnp.einsum("...jpr,...jwr->...jpw", low, outer, **float32)
    return finished(alone[..., None, :] + change, head)


def normed_rows(embedder: Weight, tokens: jax.Array, dtype) -> jax.Array:
    """n(E_a): embedding rows of tokens [...], over their root mean square, [..., D] in dtype."""
    rows = rows_of(embedder, tokens, jnp.float32)
    mean_square = jnp.mean(jnp.square(rows), axis=-1, keepdims=True)
    return (rows * jax.lax.rsqrt(mean_square + _EPSILON)).astype(dtype)


def _inner(correction: ParentCorrection, hidden: jax.Array, parents: jax.Array) -> jax.Array:
    """(A n(E_a)) * (d_j + Q z_j / sqrt(D)): [..., J, D] and [..., J, P] -> [..., J, P, rho]."""
    dtype, precision = hidden.dtype, matmul_precision(hidden.dtype)
    rows = normed_rows(correction.embedder, parents, dtype)
    low = jnp.einsum("...d,rd->...r", rows, correction.down.astype(dtype), precision=precision)
    query = jnp.einsum("...d,rd->...r", hidden, correction.query.astype(dtype), precision=precision)
    gate = correction.gate[: hidden.shape[-2]].astype(dtype)
    return low * (gate + query * hidden.shape[-1] ** -0.5)[..., None, :]

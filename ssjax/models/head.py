"""The LM head: from hidden states to scores of the vocabulary."""

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.config import ModelConfig, StreamsConfig
from ssjax.models import int8
from ssjax.models.axes import gathered
from ssjax.models.execution import Execution
from ssjax.models.int8 import Weight
from ssjax.models.parameters import Params
from ssjax.models.projection import project, project_each

DRAFT_HEAD = "draft_head"  # a leaf of `with_draft_head`, which no model has by itself


@struct.dataclass
class Head:
    """The LM head as a value, for projecting a few rows at a time; or a head for each output."""

    table: Weight  # [V, D], or [Q, V, D], which is never in eight bits
    bias: jax.Array | None  # [V]
    divisor: float = struct.field(pytree_node=False)  # of the logits, before the cap
    softcap: float = struct.field(pytree_node=False)  # 0: off


@jax.named_scope("head")
def head_logits(hidden: jax.Array, head: Head, execution: Execution) -> jax.Array:
    """hidden [..., D] through the LM head -> [..., V] float32, multiplied in hidden's dtype.

    With a head for each output, hidden is [..., Q, D] and the result [..., Q, V].
    """
    if head.table.ndim == 3:
        table = gathered(head.table.astype(hidden.dtype), "streams", "vocab", "embed")
        return project_each(hidden, table, hidden.dtype, execution, result=jnp.float32)
    table = gathered(int8.cast(head.table, hidden.dtype), "vocab", "embed")
    logits = project(hidden, table, hidden.dtype, execution, result=jnp.float32)
    if head.bias is not None:
        logits = logits + head.bias.astype(jnp.float32)
    return finished(logits, head)


def finished(logits: jax.Array, head: Head) -> jax.Array:
    """What becomes of products and bias: x over the divisor, then c tanh(x / c); c = 0: no cap."""
    if head.divisor != 1:
        logits = logits / head.divisor
    return head.softcap * jnp.tanh(logits / head.softcap) if head.softcap else logits


def head_rows(head: Head, tokens: jax.Array, dtype) -> jax.Array:
    """Rows of the head at tokens [..., Q, W] -> [..., Q, W, D]; with heads apart, of head q."""
    if head.table.ndim == 3:
        table = gathered(head.table, "streams", "vocab", "embed")
        return table[jnp.arange(table.shape[0])[:, None], tokens].astype(dtype)
    return int8.rows_of(gathered(head.table, "vocab", "embed"), tokens, dtype)


def make_head(params: Params, config: ModelConfig) -> Head:
    """The LM head among the parameters: its own table, or the tied embedding."""
    table = params["embedder"] if config.tie_embeddings else params["lm_head"]
    bias = params.get("lm_head_bias")
    return Head(table, bias, config.logit_divisor, config.logit_softcap)


def make_draft_head(params: Params, config: ModelConfig, streams: StreamsConfig) -> Head:
    """The LM head as streams use it: its rows at `streams.draft_tokens`, all if there are none.

    Row i is that of token draft_tokens[i]: logits and candidates are then numbered so.
    """
    head = make_head(params, config)
    if not streams.draft_tokens:
        return head
    tokens = jnp.array(streams.draft_tokens)
    bias = None if head.bias is None else head.bias[tokens]
    if DRAFT_HEAD in params:
        return head.replace(table=params[DRAFT_HEAD], bias=bias)
    return head.replace(table=head_rows(head, tokens, head.table.dtype), bias=bias)


def with_draft_head(params: Params, config: ModelConfig, streams: StreamsConfig) -> Params:
    """The parameters and, for `make_draft_head`, its rows: gathered once and not in every pass."""
    if not streams.draft_tokens:
        return params
    rows = jax.jit(lambda params: make_draft_head(params, config, streams).table)(params)
    return params | {DRAFT_HEAD: rows}


def make_medusa_head(params: Params) -> Head:
    """The vocabulary projections of the Medusa heads among the parameters."""
    return Head(params["medusa_head"], None, divisor=1.0, softcap=0.0)

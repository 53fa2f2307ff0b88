"""The decode loop: prefill once, then one compiled `lax.while_loop`, no host in between.

One pass of three rows with R = 3, capital letters new, `.` empty:

    row   tokens      tree             drawn         accepted   after the pass
    0     a b c       c -> d -> e      d E X         d e        a b c D E X
    1     p q r s     s -> t -> u      T' ..         nothing    p q r s T'
    2     v w <eos>   (done)           -             -          v w <eos>

Invariants of `DecodeState`: tokens[b, :length[b]] are final; the last of them is the root of
the draft and the only one that is not in the cache (of a row that may emit nothing, the whole
prompt is); a row that is done keeps tokens, length, cache and counters.

Logits that are not finite decide nothing: a row emits what was drawn before the first node of the
path that has such, and goes on without a draft, as if it had none. Where the root itself has them
and there was no draft to blame, the row has failed, just there where plain decoding fails.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.decoding.acceptance import (
    Acceptance,
    Emission,
    accept,
    accept_typical,
    emit,
    with_log_probs,
)
from ssjax.decoding.drafters import Context, Drafter
from ssjax.decoding.pruning import joint_log_probs, prune
from ssjax.decoding.sampling import (
    History,
    Sampling,
    adjust,
    draw,
    extend_history,
    position_noise,
    start_history,
    warp,
)
from ssjax.decoding.tree import NO_PARENT, DraftTree, ancestor_mask, root_only, without_drafts
from ssjax.models.attention import Causal
from ssjax.models.cache import KVCache, cache_from_block, write_path
from ssjax.models.head import head_logits, make_medusa_head
from ssjax.models.parameters import Params
from ssjax.models.transformer import Anchors, ModelOutput, Transformer


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """What is fixed for a compiled loop; changing it recompiles."""

    capacity: int  # tokens per row, prompt included
    eos_ids: tuple[int, ...]  # each of them ends a row
    pad_id: int  # fills what is not written
    sampling: Sampling
    deferred: bool  # streams run after verification at the accepted node, not beside every node
    log_probs: bool = False  # keep log-probabilities of emitted tokens
    accept: str = "exact"  # or "typical"; see `verify`


@struct.dataclass
class DecodeState:
    """The carry: all that one pass reads and writes."""

    tokens: jax.Array  # [B, capacity] int32, prompt then output, pad elsewhere
    born: jax.Array  # [B, capacity] int32, the pass that emitted the token; 0 prompt and prefill
    length: jax.Array  # [B] int32
    limit: jax.Array  # [B] int32, length at which the row stops
    done: jax.Array  # [B] bool
    failed: jax.Array  # [B] bool, done because the model's output is not finite
    draft: DraftTree  # M nodes
    memory: Any  # what the drafter keeps between passes
    cache: KVCache  # valid below length - 1
    row_keys: jax.Array  # [B] keys, for sampling
    calls: jax.Array  # [B] int32, decode passes while the row was not done
    accepted: jax.Array  # [B, R - 1] int32, passes that kept a draft node at depth 1, 2, ...
    history: History  # of tokens[b, :length[b]], for penalties and bans
    log_probs: jax.Array | None  # [B, capacity] float32 of output tokens, 0 elsewhere; see `verify`


def prefill(
    model: Transformer,
    params: Params,
    drafter: Drafter,
    spec: DecodeSpec,
    prompts: jax.Array,
    prompt_length: jax.Array,
    max_new_tokens: jax.Array,
    row_keys: jax.Array,
    drafter_params: Params | None = None,
) -> DecodeState:
    """Reads the prompts, emits the first token and writes the first draft.

    Streams run at the last prompt token only. A row with max_new_tokens 0 emits nothing.

    Args:
      model, params: in the same form, scanned or unrolled.
      drafter, spec: static.
      prompts: [B, T] int32, padded on the right, T at most spec.capacity.
      prompt_length: [B] int32, at least 1.
      max_new_tokens: [B] int32, cut where the capacity ends.
      row_keys: [B] keys.
      drafter_params: the drafter's own, if it has any.
    """
    batch, num_tokens = prompts.shape
    last = prompt_length[:, None] - 1
    needed = drafter.num_streams
    positions = jnp.arange(num_tokens)
    inside = positions < prompt_length[:, None]
    root = jnp.take_along_axis(prompts, last, axis=1)
    # Whatever pads a prompt brings nothing that is not finite; see `without_drafts`.
    prompts = jnp.where(inside, prompts, root)
    output = model.apply(
        {"params": params},
        prompts,
        jnp.broadcast_to(positions, prompts.shape),
        Causal(),
        anchors=last,
        num_streams=model.streams.num_streams if model.streams.main_reads_streams else needed,
    )
    kept = jnp.where(inside, prompts, spec.pad_id)
    padding = [(0, 0), (0, spec.capacity - num_tokens)]
    state = DecodeState(
        tokens=jnp.pad(kept, padding, constant_values=spec.pad_id),
        born=jnp.zeros((batch, spec.capacity), jnp.int32),
        length=prompt_length,
        limit=jnp.minimum(prompt_length + max_new_tokens, spec.capacity),
        done=max_new_tokens <= 0,
        failed=jnp.zeros(batch, bool),
        draft=root_only(root[:, 0]),
        memory=drafter.start(drafter_params, prompts, prompt_length, spec.capacity),
        cache=cache_from_block(output.block, prompt_length, spec.capacity),
        row_keys=row_keys,
        calls=jnp.zeros(batch, jnp.int32),
        accepted=jnp.zeros((batch, drafter.max_depth), jnp.int32),
        history=start_history(spec.sampling, prompts, prompt_length, model.config.vocab_size),
        log_probs=jnp.zeros((batch, spec.capacity), jnp.float32) if spec.log_probs else None,
    )
    hidden = jnp.take_along_axis(output.hidden, last[:, :, None], axis=1)
    logits = model.apply({"params": params}, hidden, method="logits")
    adjusted = _adjusted(spec, state, logits, max_depth=0)
    drawn = _draw_behind_nodes(spec, state, adjusted, logits, max_depth=0)
    nothing_drafted = Acceptance(jnp.zeros_like(drawn), jnp.zeros(batch, jnp.int32))
    emission = emit(nothing_drafted, drawn, state.length, state.limit, state.done, spec.eos_ids)
    if spec.log_probs:
        emission = with_log_probs(emission, nothing_drafted, logits)
    state = _append(state, emission, state.cache, pass_number=state.calls, failed=emission.broken)
    stream_hidden = output.stream_hidden[:, 0, :needed] if needed else None
    return _propose(
        model, params, drafter, drafter_params, state, stream_hidden, hidden[:, 0], emission.broken
    )


def decode(
    model: Transformer,
    params: Params,
    drafter: Drafter,
    spec: DecodeSpec,
    state: DecodeState,
    drafter_params: Params | None = None,
) -> DecodeState:
    """Runs passes until every row is done. One `lax.while_loop`; state may be donated."""

    def step(state):
        return decode_step(model, params, drafter, spec, state, drafter_params)

    return jax.lax.while_loop(keep_going, step, state)


def decode_passes(
    model: Transformer,
    params: Params,
    drafter: Drafter,
    spec: DecodeSpec,
    state: DecodeState,
    num_passes: jax.Array,
    drafter_params: Params | None = None,
) -> DecodeState:
    """At most num_passes ([] int32) passes of `decode`, to be continued with the state returned.

    So that a caller sees tokens while they come: any sequence of pieces gives the state that one
    long loop gives.
    """

    def more(carry):
        done_passes, state = carry
        return (done_passes < num_passes) & keep_going(state)

    def step(carry):
        done_passes, state = carry
        return done_passes + 1, decode_step(model, params, drafter, spec, state, drafter_params)

    return jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), state))[1]


def keep_going(state: DecodeState) -> jax.Array:
    """[] bool: some row is not done."""
    return ~state.done.all()


def decode_step(
    model: Transformer,
    params: Params,
    drafter: Drafter,
    spec: DecodeSpec,
    state: DecodeState,
    drafter_params: Params | None = None,
) -> DecodeState:
    """One pass: verify the draft, emit, write the cache, write the next draft.

    Args:
      model, params: in the same form, scanned or unrolled.
      drafter: the one that wrote state.draft.
      spec: the one that the state was made with.
      state: see the invariants above.
      drafter_params: the drafter's own, if it has any.
    """
    cached = state.length - 1
    undrafted = (state.draft.parent == NO_PARENT).all(axis=1)
    with jax.named_scope("pass"):
        tree, mask, output = run_draft(model, params, drafter, spec, state)
    with jax.named_scope("verify"):
        state = state.replace(draft=tree)
        logits = model.apply({"params": params}, output.hidden, method="logits")
        adjusted = _adjusted(spec, state, logits, drafter.max_depth)
        drawn = _draw_behind_nodes(spec, state, adjusted, logits, drafter.max_depth)
        if spec.accept == "typical":
            target = warp(adjusted, spec.sampling)
            acceptance, drawn = accept_typical(tree, mask, target, drawn, drafter.max_depth)
        else:
            acceptance = accept(tree, drawn, drafter.max_depth)
    with jax.named_scope("emit"):
        emission = emit(acceptance, drawn, state.length, state.limit, state.done, spec.eos_ids)
        if spec.log_probs:
            emission = with_log_probs(emission, acceptance, logits)
    with jax.named_scope("write"):
        cache = write_path(state.cache, output.block, acceptance.path, cached, emission.count)
        depths = jnp.arange(1, drafter.max_depth + 1)
        # Where a pass broke off, its last token counts as the one behind the nodes that it kept.
        kept = jnp.minimum(acceptance.num_accepted, emission.count - emission.broken)
        failed = emission.broken & undrafted
        following = _append(state, emission, cache, state.calls + 1, failed).replace(
            calls=state.calls + ~state.done,
            accepted=state.accepted + (depths <= kept[:, None]),
        )
    with jax.named_scope("draft"):
        stream_hidden = None
        if drafter.num_streams:
            stream_hidden = streams_at(
                model, params, drafter, spec, state, output, mask, acceptance
            )
        at_node = jnp.take_along_axis(output.hidden, acceptance.path[:, -1:, None], axis=1)[:, 0]
        return _propose(
            model, params, drafter, drafter_params, following, stream_hidden, at_node,
            emission.broken,
        )  # fmt: skip


def run_draft(model, params, drafter, spec, state):
    """The model over the draft: (the nodes that were run to the end, what each sees, output)."""
    tree, cached = state.draft, state.length - 1
    mask = ancestor_mask(tree.parent, drafter.max_depth)
    num_streams = _streams_in_pass(model, drafter, spec)
    trunk = model.apply(
        {"params": params}, tree.tokens, cached[:, None] + tree.depth, mask, state.cache, cached,
        method="run_trunk",
    )  # fmt: skip
    budget = drafter.kept_nodes or drafter.num_nodes - 1
    if budget < drafter.num_nodes - 1 or drafter.exit_threshold > 0:
        with jax.named_scope("prune"):
            hidden = model.apply({"params": params}, trunk.hidden, method="early_exit")
            logits = model.apply({"params": params}, hidden, method="logits")
            joint = joint_log_probs(tree, mask, logits, drafter.exit_threshold)
            tree, kept = prune(tree, joint, min(1 + budget, drafter.num_nodes))
            mask = ancestor_mask(tree.parent, drafter.max_depth)
            trunk = trunk.at_positions(kept)
    nodes = jnp.broadcast_to(jnp.arange(tree.tokens.shape[1]), tree.tokens.shape)
    output = model.apply(
        {"params": params}, trunk, cached[:, None] + tree.depth, mask, state.cache, cached,
        anchors=nodes, num_streams=num_streams, method="run_stream_layers",
    )  # fmt: skip
    return tree, mask, output


def _streams_in_pass(model, drafter, spec) -> int:
    """How many streams run beside every node of a pass."""
    if model.streams.main_reads_streams:
        return model.streams.num_streams
    return 0 if spec.deferred else drafter.num_streams


def streams_at(model, params, drafter, spec, state, output: ModelOutput, mask, acceptance):
    """Stream hidden states at the last accepted node, [B, J, D]."""
    node = acceptance.path[:, -1:]  # [B, 1]
    if _streams_in_pass(model, drafter, spec):
        at_node = jnp.take_along_axis(output.stream_hidden, node[:, :, None, None], axis=1)
        return at_node[:, 0, : drafter.num_streams]
    cached = state.length - 1
    at_node = Anchors(
        hidden=jnp.take_along_axis(output.trunk_hidden, node[:, :, None], axis=1),
        positions=cached[:, None] + jnp.take_along_axis(state.draft.depth, node, axis=1),
        mask=jnp.take_along_axis(mask, node[:, :, None], axis=1),
    )
    return model.apply(
        {"params": params},
        at_node,
        output.block,
        cached[:, None] + state.draft.depth,
        state.cache,
        cached,
        drafter.num_streams,
        method="speculate",
    )[:, 0]


def _adjusted(spec, state, logits, max_depth):
    """Main logits with penalties and bans, [B, M, V]."""
    return adjust(
        logits, spec.sampling, state.history, state.draft, state.length, spec.eos_ids, max_depth
    )


def _draw_behind_nodes(spec, state, adjusted, logits, max_depth):
    """Draws the next token behind every node from adjusted logits, [B, M] int32; see `draw`."""
    noise = None
    if spec.sampling.temperature > 0:
        positions = state.length[:, None] + jnp.arange(max_depth + 1)
        noise = position_noise(state.row_keys, positions, adjusted.shape[-1])
    return draw(adjusted, logits, state.draft.depth, noise, spec.sampling)


def _propose(model, params, drafter, drafter_params, state, stream_hidden, hidden, broken):
    """The state with the next draft, from what was computed at the last accepted node.

    Rows that are broken ([B] bool) get none.
    """
    root = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)[:, 0]
    log_probs = None
    if stream_hidden is not None:
        logits = model.apply({"params": params}, stream_hidden, method="logits")
        log_probs = jax.nn.log_softmax(logits, axis=-1)
    elif drafter.num_heads:
        heads = model.apply({"params": params}, hidden, method="medusa")
        logits = head_logits(heads, make_medusa_head(params), model.execution)
        log_probs = jax.nn.log_softmax(logits[:, : drafter.num_heads], axis=-1)
    context = Context(state.tokens, state.length, root, log_probs, drafter_params, state.memory)
    draft, memory = drafter.propose(context)
    return state.replace(draft=without_drafts(draft, broken), memory=memory)


def _append(
    state: DecodeState,
    emission: Emission,
    cache: KVCache,
    pass_number: jax.Array,
    failed: jax.Array,
) -> DecodeState:
    """Writes the emitted tokens behind each row; the draft is left for the caller."""
    step = jnp.arange(emission.tokens.shape[1])
    emitted = step < emission.count[:, None]
    slot = jnp.where(emitted, state.length[:, None] + step, state.tokens.shape[1])

    @jax.vmap  # no row writes into another's, which the compiler then knows
    def write(old, slot, new):
        return old.at[slot].set(new, mode="drop")

    numbers = jnp.broadcast_to(pass_number[:, None], slot.shape)
    log_probs = state.log_probs
    if log_probs is not None:
        log_probs = write(log_probs, slot, emission.log_probs)
    return state.replace(
        tokens=write(state.tokens, slot, emission.tokens),
        born=write(state.born, slot, numbers),
        length=state.length + emission.count,
        done=emission.done | failed,
        failed=state.failed | failed,
        cache=cache,
        history=extend_history(state.history, emission.tokens, emitted),
        log_probs=log_probs,
    )

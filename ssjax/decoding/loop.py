"""The decode loop: prefill once, then one compiled `lax.while_loop`, no host in between.

One pass of three rows with R = 3, capital letters new, `.` empty:

    row   tokens      tree             drawn         accepted   after the pass
    0     a b c       c -> d -> e      d E X         d e        a b c D E X
    1     p q r s     s -> t -> u      T' ..         nothing    p q r s T'
    2     v w <eos>   (done)           -             -          v w <eos>

Logits that are not finite decide nothing: a row emits what was drawn before the first node of the
path that has such, and goes on without a draft, as if it had none. Where the root itself has them
and there was no draft to blame, the row has failed, just there where plain decoding fails.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from ssjax.decoding.acceptance import (
    Acceptance,
    Emission,
    Likeliest,
    accept,
    accept_typical,
    emit,
    with_log_probs,
)
from ssjax.decoding.adapters import AnyParams, of_rows
from ssjax.decoding.chances import rows_needed
from ssjax.decoding.drafters import Drafter
from ssjax.decoding.forward import DraftOutput, Forward, Reading
from ssjax.decoding.row_penalties import with_prompts
from ssjax.decoding.sampling import start_history, warp
from ssjax.decoding.state import DecodeSpec, DecodeState, Part, Rows
from ssjax.decoding.tree import NO_PARENT, root_only
from ssjax.models import cache as cache_lib
from ssjax.models.cache import KVCache, cache_from_block, write_path
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer


def prefill(
    model: Transformer,
    params: AnyParams,
    drafter: Drafter,
    spec: DecodeSpec,
    rows: Rows,
    drafter_params: Params | None = None,
    part: Part | None = None,
) -> DecodeState:
    """Reads the prompts, emits the first token and writes the first draft.

    With a part, reads the prompts on from where it starts, and as far as it is wide; where that is
    not the end, of the state returned only the cache is of use, for the next part.

    Args:
      model, params: in the same form, scanned or unrolled; with adapters a stack or its rows.
      drafter, spec: static.
      rows: the prompts; what pads them does not matter.
      drafter_params: the drafter's own, if it has any.
      part: None: whole prompts. Otherwise of a model whose main rows read no streams, with a
        drafter that keeps no memory of prompts.
    """
    forward = Forward(model, of_rows(params, rows.adapter), drafter, spec, drafter_params)
    last = rows.prompt_length[:, None] - 1
    inside = jnp.arange(rows.prompts.shape[1]) < rows.prompt_length[:, None]
    root = jnp.take_along_axis(rows.prompts, last, axis=1)
    # Whatever pads a prompt brings nothing that is not finite; see `without_drafts`.
    rows = rows.replace(prompts=jnp.where(inside, rows.prompts, root))
    reading = Reading(rows.prompts, last, None, None) if part is None else _piece(rows, part)
    output = forward.read(reading)
    state = _start(forward, rows, inside, root, _cache_after(forward, rows, part, output.block))
    hidden = jnp.take_along_axis(output.hidden, reading.last[:, :, None], axis=1)
    logits = forward.logits(hidden)
    drawn = forward.draw(state, forward.adjusted(state, logits, 0), logits, max_depth=0)
    nothing = jnp.zeros_like(state.length)
    nothing_drafted = Acceptance(jnp.zeros_like(drawn), nothing)
    eos_ids = forward.eos_ids(state)
    emission = emit(nothing_drafted, drawn, state.length, state.limit, state.done, eos_ids)
    if spec.log_probs:
        emission = with_log_probs(emission, nothing_drafted, logits, _num_likeliest(state))
    state = state.append(emission, kept=nothing, failed=emission.broken)
    streams = forward.streams_after(reading, output, state.last_tokens)
    state = state.replace(allowed=None)
    return forward.propose(state, streams, hidden[:, 0], emission.broken)


def _piece(rows: Rows, part: Part) -> Reading:
    """The tokens of a part, filled with the last of each prompt."""
    last = rows.prompt_length[:, None] - 1
    index = part.start[:, None] + jnp.arange(part.width)
    tokens = jnp.take_along_axis(rows.prompts, jnp.minimum(index, last), axis=1)
    return Reading(
        tokens, jnp.minimum(last - part.start[:, None], part.width - 1), part.cache, part.start
    )


def _cache_after(forward: Forward, rows: Rows, part: Part | None, block: KVCache) -> KVCache:
    """The cache once the block of a reading is in it."""
    if part is None:
        return cache_from_block(block, rows.prompt_length, forward.spec.capacity)
    count = jnp.minimum(rows.prompt_length - part.start, part.width)
    path = jnp.broadcast_to(jnp.arange(part.width), (part.start.shape[0], part.width))
    return write_path(part.cache, block, path, part.start, count, forward.model.execution)


def _start(
    forward: Forward, rows: Rows, inside: jax.Array, root: jax.Array, cache: KVCache
) -> DecodeState:
    """The state before anything is emitted.

    Args:
      forward: of the loop.
      rows: the prompts.
      inside: [B, T] bool, what of rows.prompts is no padding.
      root: [B, 1] int32, the last token of each prompt.
      cache: of what has been read.
    """
    drafter, spec, batch = forward.drafter, forward.spec, rows.prompts.shape[0]
    length, per_token = rows.prompt_length, (batch, spec.capacity)
    vocab_size, penalties = forward.model.config.vocab_size, rows.penalties
    if penalties is not None:
        penalties = with_prompts(penalties, rows.prompts, length, vocab_size)
    prompts = jnp.where(inside, rows.prompts, spec.pad_id)
    more = [(0, 0), (0, spec.capacity - prompts.shape[1])]
    return DecodeState(
        tokens=jnp.pad(prompts, more, constant_values=spec.pad_id),
        born=jnp.zeros(per_token, jnp.int32),
        drafted=jnp.zeros(per_token, bool),
        length=length,
        limit=jnp.minimum(length + rows.max_new_tokens, spec.capacity),
        done=rows.max_new_tokens <= 0,
        failed=jnp.zeros(batch, bool),
        draft=root_only(root[:, 0]),
        memory=drafter.start(forward.drafter_params, rows.prompts, length, spec.capacity),
        cache=cache,
        row_keys=rows.keys,
        calls=jnp.zeros(batch, jnp.int32),
        history=start_history(spec.sampling, rows.prompts, length, vocab_size),
        log_probs=jnp.zeros(per_token, jnp.float32) if spec.log_probs else None,
        settings=rows.settings,
        allowed=rows.allowed,
        penalties=penalties,
        likeliest=_no_likeliest(*per_token, spec.num_likeliest) if spec.num_likeliest else None,
        adapter=rows.adapter,
    )


def _no_likeliest(batch: int, capacity: int, number: int) -> Likeliest:
    shape = batch, capacity, number
    return Likeliest(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def _num_likeliest(state: DecodeState) -> int:
    """K, 0 where nobody asks for it."""
    return 0 if state.likeliest is None else state.likeliest.tokens.shape[-1]


def grow(state: DecodeState, rows: Rows, capacity: int, pad_id: int) -> DecodeState:
    """The state of a prefill with more slots per row.

    So prompts are read by the same program however long their outputs may become.

    Args:
      state: what `prefill` made of the rows, with slots for two tokens and the deepest draft
        after the longest prompt: with fewer, rows would be done, and a draft model's cache cut.
      rows: the prompts.
      capacity: tokens per row, at least those of the state.
      pad_id: as in the spec.
    """
    more = [(0, 0), (0, capacity - state.tokens.shape[1])]

    def larger(leaf):
        return cache_lib.grow(leaf, capacity) if isinstance(leaf, KVCache) else leaf

    kept, likeliest = state.log_probs, state.likeliest
    if likeliest is not None:
        likeliest = jax.tree.map(lambda x: jnp.pad(x, [*more, (0, 0)]), likeliest)
    return state.replace(
        tokens=jnp.pad(state.tokens, more, constant_values=pad_id),
        born=jnp.pad(state.born, more),
        drafted=jnp.pad(state.drafted, more),
        limit=jnp.minimum(rows.prompt_length + rows.max_new_tokens, capacity),
        # A draft model has a cache of its own.
        memory=jax.tree.map(larger, state.memory, is_leaf=lambda x: isinstance(x, KVCache)),
        cache=cache_lib.grow(state.cache, capacity),
        log_probs=None if kept is None else jnp.pad(kept, more),
        likeliest=likeliest,
    )


def decode(
    model: Transformer,
    params: AnyParams,
    drafter: Drafter,
    spec: DecodeSpec,
    state: DecodeState,
    drafter_params: Params | None = None,
) -> DecodeState:
    """Runs passes until every row is done. One `lax.while_loop`; state may be donated."""
    params = of_rows(params, state.adapter)

    def step(state):
        return decode_step(model, params, drafter, spec, state, drafter_params)

    return jax.lax.while_loop(keep_going, step, state)


def decode_passes(
    model: Transformer,
    params: AnyParams,
    drafter: Drafter,
    spec: DecodeSpec,
    state: DecodeState,
    num_passes: jax.Array,
    drafter_params: Params | None = None,
    until_end: jax.Array | None = None,
) -> DecodeState:
    """At most num_passes ([] int32) passes of `decode`, to be continued with the state returned.

    So that a caller sees tokens while they come: any sequence of pieces gives the state that one
    long loop gives. Where until_end ([] bool) is given and true, the pass in which a row ends is
    the last, so that another may take its place at once.
    """
    running = (~state.done).sum()
    params = of_rows(params, state.adapter)  # once for all passes

    def more(carry):
        done_passes, state = carry
        going = (done_passes < num_passes) & keep_going(state)
        if until_end is not None:
            going &= ~until_end | ((~state.done).sum() == running)
        return going

    def step(carry):
        done_passes, state = carry
        return done_passes + 1, decode_step(model, params, drafter, spec, state, drafter_params)

    return jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), state))[1]


def keep_going(state: DecodeState) -> jax.Array:
    """[] bool: some row is not done."""
    return ~state.done.all()


def decode_step(
    model: Transformer,
    params: AnyParams,
    drafter: Drafter,
    spec: DecodeSpec,
    state: DecodeState,
    drafter_params: Params | None = None,
) -> DecodeState:
    """One pass: verify the draft, emit, write the cache, write the next draft.

    Args:
      model, params: in the same form, scanned or unrolled; with adapters a stack or its rows.
      drafter: the one that wrote state.draft.
      spec: the one that the state was made with.
      state: see the invariants of `DecodeState`.
      drafter_params: the drafter's own, if it has any.
    """
    forward = Forward(model, of_rows(params, state.adapter), drafter, spec, drafter_params)
    undrafted = (state.draft.parent == NO_PARENT).all(axis=1)
    found = _run_pass(forward, state)
    emission, accepted = found.emission, found.acceptance
    with jax.named_scope("write"):
        cached = state.length - 1
        cache = write_path(
            state.cache, found.block, accepted.path, cached, emission.count, model.execution
        )
        # Where a pass broke off, its last token counts as the one after the nodes that it kept.
        kept = jnp.minimum(accepted.num_accepted, emission.count - emission.broken)
        following = state.replace(cache=cache, calls=state.calls + ~state.done)
        following = following.append(emission, kept, failed=emission.broken & undrafted)
    with jax.named_scope("draft"):
        return forward.propose(following, found.streams, found.hidden, emission.broken)


@struct.dataclass
class _Pass:
    """What a pass found out."""

    acceptance: Acceptance
    emission: Emission
    block: KVCache  # keys and values of its nodes
    hidden: jax.Array  # [B, D] main hidden state at the last accepted node
    streams: jax.Array | None  # [B, J, D] there


def _run_pass(forward: Forward, state: DecodeState) -> _Pass:
    """A pass of the fewest rows among drafter.widths that hold every row's draft."""
    widths = forward.drafter.widths
    if len(widths) == 1:
        return _pass_of(forward, state, widths[0])
    needed = jnp.where(state.done, 1, rows_needed(state.draft)).max()
    passes = [functools.partial(_pass_of, forward, width=each) for each in widths]
    return jax.lax.switch((needed > jnp.array(widths[:-1])).sum(), passes, state)


def _pass_of(forward: Forward, state: DecodeState, width: int) -> _Pass:
    """A pass over the first nodes of the draft, which are all that is used of it."""
    spec = forward.spec
    with jax.named_scope("pass"):
        draft = forward.run_draft(state.replace(draft=state.draft.first(width)))
        if state.allowed is not None:
            state = state.replace(allowed=state.allowed[:, :width])
        state = state.replace(draft=draft.tree)
    with jax.named_scope("verify"):
        logits = forward.logits(draft.output.hidden)
        acceptance, drawn = _verify(forward, state, draft, logits)
    with jax.named_scope("emit"):
        eos_ids = forward.eos_ids(state)
        emission = emit(acceptance, drawn, state.length, state.limit, state.done, eos_ids)
        if spec.log_probs:
            emission = with_log_probs(emission, acceptance, logits, _num_likeliest(state))
    with jax.named_scope("draft"):
        streams = forward.streams_at(state, draft, acceptance, emission.last_of(state.last_tokens))
    node = acceptance.path[:, -1:, None]
    hidden = jnp.take_along_axis(draft.output.hidden, node, axis=1)[:, 0]
    block = draft.output.block
    more = forward.drafter.widths[-1] - width
    if more and len(forward.drafter.widths) > 1:  # passes of all widths are alike to who called
        block = jax.tree.map(
            lambda x: jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, more), (0, 0)]), block
        )
    return _Pass(acceptance, emission, block, hidden, streams)


def _verify(
    forward: Forward, state: DecodeState, draft: DraftOutput, logits: jax.Array
) -> tuple[Acceptance, jax.Array]:
    """The path that each row keeps, and the tokens that follow each node, [B, M] int32."""
    depth = forward.drafter.max_depth
    adjusted = forward.adjusted(state, logits, depth)
    drawn = forward.draw(state, adjusted, logits, depth)
    if forward.spec.accept == "typical":
        target = warp(adjusted, forward.spec.sampling)
        return accept_typical(draft.tree, draft.mask, target, drawn, depth)
    return accept(draft.tree, drawn, depth), drawn

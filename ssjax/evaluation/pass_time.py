"""What one decode pass costs, by drafter and execution order, on this device.

A pass is everything the loop does: trunk and stream layers, head, verification, cache, streams
and the next draft. All are timed with the cache that the decoder would give prompts of this
length, and in turn within each repeat, so that a slow moment of the machine meets all of them.
Compilation is excluded; the median of the repeats is reported.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ssjax.decoding import loop
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import Drafter, PlainDrafter, Way
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, DecodeState, Rows
from ssjax.decoding.tree import NO_PARENT, DraftTree
from ssjax.parallel import distributed

# A timed loop has as many passes as fill this time, within bounds.
_LOOP_SECONDS = 0.05
_FEWEST, _MOST = 4, 100

Step = Callable[..., DecodeState]  # with the arguments of `loop.decode_step`


@dataclasses.dataclass(frozen=True)
class PassShape:
    """How large a timed pass is."""

    batch_size: int  # rows
    prompt_length: int  # tokens; with max_new_tokens they say how large the cache is
    max_new_tokens: int


def seconds_per_pass(
    decoder: Decoder,
    ways: Sequence[Way],
    shape: PassShape,
    *,
    repeats: int,
    steps: Sequence[Step] | None = None,
    rows: Sequence[int] | None = None,
    on_compiled: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Median seconds of a pass of a whole batch, in the order of `ways`.

    Args:
      decoder: the model.
      ways: drafters that keep nothing between passes; each is compiled once.
      shape: rows and cache.
      repeats: timed loops of each way.
      steps: what a pass of each way is; None: that of decoding, `loop.decode_step`.
      rows: that the draft of each way needs, the root included, in every pass; of those with passes
        of several widths it says which. None: they have one width.
      on_compiled: called with the number of ways compiled so far.
    """
    if steps is None:
        steps = [loop.decode_step if rows is None else _held_step] * len(ways)
    rows = [1] * len(ways) if rows is None else rows
    capacity = decoder.capacity(shape.prompt_length, shape.max_new_tokens)
    spec = DecodeSpec(capacity, decoder.eos_ids, decoder.pad_id, Sampling(), deferred=True)
    with jax.set_mesh(decoder.mesh):
        prompted = _prompted(
            decoder.model, decoder.params, spec, shape.batch_size, shape.prompt_length
        )
        loops = []
        for number, (way, step, needed) in enumerate(zip(ways, steps, rows, strict=True), start=1):
            own = dataclasses.replace(spec, deferred=way.deferred)
            static = (step, decoder.model, decoder.params, way.drafter, own)
            run = functools.partial(_passes, *static, _ready(prompted, way.drafter, needed))
            _seconds(run, _FEWEST)  # compiles
            [once] = distributed.agreed([_seconds(run, _FEWEST) / _FEWEST])
            loops.append((run, min(max(math.ceil(_LOOP_SECONDS / once), _FEWEST), _MOST)))
            on_compiled(number)
        times = [[_seconds(run, count) / count for run, count in loops] for _ in range(repeats)]
    # What is chosen by them must be the same in all processes.
    return distributed.agreed([statistics.median(own) for own in zip(*times, strict=True)])


def _seconds(run, count) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run(count))
    return time.perf_counter() - began


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _prompted(model, params, spec, batch_size, prompt_length) -> DecodeState:
    """The state after a prompt of arbitrary ids."""
    ids = jnp.arange(prompt_length) % model.config.vocab_size
    row = jnp.ones(batch_size, jnp.int32)
    rows = Rows(
        prompts=jnp.broadcast_to(ids, (batch_size, prompt_length)),
        prompt_length=row * prompt_length,
        max_new_tokens=row * spec.capacity,
        keys=jax.random.split(jax.random.key(0), batch_size),
    )
    return loop.prefill(model, params, PlainDrafter(), spec, rows)


def _ready(state: DecodeState, drafter: Drafter, rows: int = 1) -> DecodeState:
    """The state of plain decoding as one of this drafter, with a draft of so many rows.

    They are the root and children of it.
    """
    root = state.draft
    more = [(0, 0), (0, drafter.num_nodes - 1)]
    place = jnp.arange(drafter.num_nodes)
    is_child = (place > 0) & (place < rows)
    draft = DraftTree(
        jnp.pad(root.tokens, more),
        jnp.where(is_child, 0, jnp.pad(root.parent, more, constant_values=NO_PARENT)),
        jnp.where(is_child, 1, jnp.pad(root.depth, more)),
    )
    # A prompt of arbitrary ids may end at once, and a row that is done needs no rows of a draft:
    # every width then took what the narrowest does, 17.7 ms of SmolLM2 in place of 27.
    return state.replace(draft=draft, done=jnp.zeros_like(state.done))


def _held_step(model, params, drafter, spec, state) -> DecodeState:
    """`loop.decode_step` after which the draft has the form that it had, so that all are as wide.

    It runs through the choice between widths, which costs something, too: timed without it, passes
    of SmolLM2 with a chance of 0.4 or more came out at 19.9 ms and took 22.6.
    """
    following = loop.decode_step(model, params, drafter, spec, state)
    # The tokens are the new ones, or nobody would need that draft and XLA would leave it out.
    draft = state.draft.replace(tokens=jnp.maximum(following.draft.tokens, 0))
    return following.replace(draft=draft)


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _passes(step, model, params, drafter, spec, state, count) -> DecodeState:
    """Runs `count` passes, all at the prompt's length and with no row done."""

    def one(number, following):
        following = step(model, params, drafter, spec, following)
        # Were the length constant, masks and rotary tables would leave the loop.
        return following.replace(length=state.length + number % 2, done=state.done)

    return jax.lax.fori_loop(0, count, one, state)

"""The state of the loop while serving: S slots, each empty or a request, and what changes them.

    start    one state of S rows that are all done
    admit    prefill of one prompt by the program of its bucket, then its row replaces a slot's
    run      a few passes over the slots, by the program of a size
    drop     rows that nobody waits for are done

Each is a program of fixed shapes: `Slots.start` and `start_special` run all of them once, and
nothing is compiled after them.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.decoding.acceptance import Likeliest
from ssjax.decoding.completion import Completion
from ssjax.decoding.decoder import (
    Decoder,
    HostState,
    prefill_program,
    row_keys,
)
from ssjax.decoding.drafters import Drafter
from ssjax.decoding.request import PromptBatch
from ssjax.decoding.room import enough_memory
from ssjax.decoding.row_penalties import penalties_of
from ssjax.decoding.row_settings import settings_of
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, DecodeState, Rows
from ssjax.decoding.tree import DraftTree
from ssjax.parallel.partitioning import to_host
from ssjax.serving.adapters import Adapters
from ssjax.serving.extras import Special
from ssjax.serving.passes import by_axis, passes
from ssjax.serving.sizes import Size
from ssjax.serving.ticket import Asked, Ticket

_REPEATS = 5  # of each measurement, the median of which counts


class Slots:
    """S rows of a compiled loop.

    Args:
      decoder: the model, on one device.
      sizes: the programs that passes are run by; drafters that keep the same between passes.
      sampling: penalties, bans and fewest new tokens of all requests, a part of the programs.
      num_slots: S.
      max_prompt_tokens, max_new_tokens: of a request; they fix the slots of the cache.
      num_eos_ids: ids that may end a request, at most.
      special: what some requests may need.
      adapters: of the decoder; None: it has none.
    """

    def __init__(
        self,
        decoder: Decoder,
        sizes: Sequence[Size],
        sampling: Sampling,
        *,
        num_slots: int,
        max_prompt_tokens: int,
        max_new_tokens: int,
        num_eos_ids: int,
        special: Special,
        adapters: Adapters | None = None,
    ):
        self.decoder = decoder
        self.num_slots = num_slots
        self.capacity = decoder.capacity(max_prompt_tokens, max_new_tokens)
        lengths = range(1, max_prompt_tokens + 1)
        self._buckets = sorted({decoder.bucket(length) for length in lengths})
        self._num_eos_ids = num_eos_ids
        self._special = special
        if special.penalties:
            sampling = dataclasses.replace(sampling, repetition_penalty=1.0, presence_penalty=0.0)
        self._sizes = tuple(sizes)
        way = max((size.way for size in sizes), key=lambda way: way.drafter.num_nodes)
        self._drafter_params = way.drafter_params
        spec = DecodeSpec(
            capacity=self.capacity,
            eos_ids=decoder.eos_ids,
            pad_id=decoder.pad_id,
            sampling=sampling,
            deferred=way.deferred,
            log_probs=True,
            num_likeliest=special.num_likeliest,
        )
        self._drafter, self._spec, self._adapters = way.drafter, spec, adapters
        self._state: DecodeState | None = None

    @property
    def _static(self) -> tuple:
        """What the programs take first; the leaves of adapters change, their shapes do not."""
        params = self.decoder.params if self._adapters is None else self._adapters.params
        return self.decoder.model, params, self._drafter, self._spec

    def start(self) -> None:
        """Empties the slots; compiles every program, if it is the first time.

        Raises:
          UserError: the device has no memory for so many slots.
        """
        with enough_memory(self.num_slots, self.capacity):
            asked = Asked((0,), 1, self._spec.sampling, 0, 0, ())
            every = self._every_token(1, 1)
            with jax.set_mesh(self.decoder.mesh):
                row = self._prefill(asked, self._buckets[0], every)
                self._state = _spread(row, self.num_slots)
            for bucket in self._buckets:
                # Twice: what one program returns is what the others must be compiled for.
                for _ in range(2):
                    self._insert(self._prefill(asked, bucket, every), 0)
                    for size in self._sizes:
                        self.run(1, size, [0], until_end=False)
                    self.drop([0])
            self.read()

    def start_special(self, sizes: Iterable[Size]) -> None:
        """Compiles the programs of some sizes for what `Special` says, if anything."""
        if not self._special.any:
            return
        asked = Asked((0,), 1, self._static[3].sampling, 0, 0, ())
        for size in sizes:
            for _ in range(2):
                self.admit(0, asked, self._every_token(1, 1))
                self.run(1, size, [0], until_end=False, special=True)
                self.drop([0])

    def measured(self, num_passes: int) -> list[Size]:
        """The sizes with the seconds of a pass, each with as many busy slots as it has rows.

        In turn, so that a slow moment of the machine meets all of them. What was in the slots is
        lost.

        Args:
          num_passes: that are run at once; what taking rows out and putting them back costs is
            shared by them.
        """
        deepest = self._static[2].max_depth
        num_passes = max(1, min(num_passes, (self.capacity - 2) // (1 + deepest)))
        times: list[list[float]] = [[] for _ in self._sizes]
        for _ in range(1 + _REPEATS):  # the first compiles what revives rows
            for size, own in zip(self._sizes, times, strict=True):
                busy = list(range(size.rows))
                with jax.set_mesh(self.decoder.mesh):
                    self._state = _revive(self._state, self._mask(busy))
                self._state.length.block_until_ready()
                began = time.perf_counter()
                self.run(num_passes, size, busy, until_end=False)
                self._state.length.block_until_ready()
                own.append((time.perf_counter() - began) / num_passes)
                self.drop(busy)
        return [
            dataclasses.replace(size, seconds=statistics.median(own[1:]))
            for size, own in zip(self._sizes, times, strict=True)
        ]

    @property
    def num_nodes(self) -> int:
        """M of the largest draft."""
        return self._static[2].num_nodes

    def _every_token(self, *shape: int) -> np.ndarray | None:
        """A mask that allows every token, [..., W] int32; None where there are no masks."""
        words = self._special.num_words
        return np.full((*shape, words), -1, np.int32) if words else None

    def admit(self, slot: int, asked: Asked, allowed: np.ndarray | None = None) -> None:
        """Puts a request into a slot, whatever was there; its first token is then known.

        Args:
          slot: which.
          asked: what for.
          allowed: [1, 1, W] int32, tokens that it may begin with, exactly where there are masks.
        """
        row = self._prefill(asked, self.decoder.bucket(len(asked.prompt)), allowed)
        self._insert(row, slot)

    def run(
        self,
        num_passes: int,
        size: Size,
        busy: Sequence[int],
        *,
        until_end: bool,
        special: bool = False,
        allowed: np.ndarray | None = None,
    ) -> None:
        """At most so many passes: fewer if all rows are done before.

        Args:
          num_passes: at most.
          size: one of those that were given; of at least as many rows as slots are busy.
          busy: slots that hold a request; no other is run further.
          until_end: the pass in which a row ends is the last.
          special: some request needs what `Special` says.
          allowed: [S, M, W] int32 for one pass, the tokens that may follow each node of the largest
            draft, see `passes`; None: any.
        """
        slots, drafter = None, size.way.drafter
        if size.rows < self.num_slots:
            idle = sorted(set(range(self.num_slots)) - set(busy))
            slots = np.array([*busy, *idle][: size.rows], np.int32)
        if special and allowed is None:
            allowed = self._every_token(self.num_slots, self.num_nodes)
        if allowed is not None:
            allowed = allowed[:, : drafter.num_nodes]
            allowed = allowed if slots is None else allowed[slots]
            drafter = _unpruned(drafter)
        model, params, _, spec = self._static
        with jax.set_mesh(self.decoder.mesh):
            self._state = passes(
                model,
                params,
                drafter,
                dataclasses.replace(spec, deferred=size.way.deferred),
                self._state,
                slots,
                np.int32(num_passes),
                self._drafter_params,
                np.bool_(until_end),
                allowed,
                special,
            )

    def drop(self, slots: Sequence[int]) -> None:
        """The rows of these slots are done."""
        with jax.set_mesh(self.decoder.mesh):
            self._state = _drop(self._state, self._mask(slots))

    def _mask(self, slots: Sequence[int]) -> np.ndarray:
        """[S] bool."""
        return np.isin(np.arange(self.num_slots), slots)

    def read(self) -> HostState:
        """What completions are read from; waits for the device."""
        return HostState.of(self._state)

    def read_likeliest(self) -> Likeliest:
        """[S, capacity, K] of the tokens of all slots, as NumPy arrays; waits for the device."""
        return to_host(self._state.likeliest)

    def read_draft(self) -> DraftTree:
        """The drafts of all slots, as NumPy arrays; waits for the device."""
        return to_host(self._state.draft)

    def _prefill(self, asked: Asked, bucket: int, allowed: np.ndarray | None) -> DecodeState:
        """A state of one row."""
        batch = PromptBatch(
            prompts=[asked.prompt],
            limits=np.array([asked.max_new_tokens], np.int32),
            seeds=np.array([asked.seed], np.int32),
            places=np.array([asked.place], np.int32),
            num_prompts=1,
        )
        sampling, penalties = asked.sampling, None
        own = (sampling, asked.eos_ids, self._num_eos_ids)
        settings = settings_of(*own, drafting=asked.drafting)
        if self._special.penalties:
            repetition, presence = sampling.repetition_penalty, sampling.presence_penalty
            penalties = penalties_of(repetition, presence, asked.frequency_penalty)
        with jax.set_mesh(self.decoder.mesh):
            rows = Rows(
                batch.padded(bucket, self.decoder.pad_id),
                batch.lengths,
                batch.limits,
                row_keys(batch.seeds, batch.places),
                settings,
                allowed,
                penalties,
                self._place(asked),
            )
            return prefill_program(*self._static, rows, self._drafter_params)

    def _place(self, asked: Asked) -> np.ndarray | None:
        """[1] int32, of its adapter in the stack; None without adapters."""
        if self._adapters is None:
            return None
        return np.array([asked.adapter.place if asked.adapter else 0], np.int32)

    def _insert(self, row: DecodeState, slot: int) -> None:
        with jax.set_mesh(self.decoder.mesh):
            self._state = _insert(self._state, row, np.int32(slot))


def with_likeliest(
    found: Completion, ticket: Ticket, likeliest: Likeliest, slot: int
) -> Completion:
    """A completion with the likeliest tokens that its request asks for."""
    asked, before = ticket.asked, ticket.completion.likeliest or ()
    start = len(asked.prompt)
    new = slice(start + len(before), start + len(found.tokens))
    tokens, log_probs = (
        values[slot, new, : asked.num_likeliest].tolist()
        for values in (likeliest.tokens, likeliest.log_probs)
    )
    pairs = [tuple(zip(*each, strict=True)) for each in zip(tokens, log_probs, strict=True)]
    return dataclasses.replace(found, likeliest=(*before, *pairs))


def _unpruned(drafter: Drafter) -> Drafter:
    """The drafter without an early exit, which numbers nodes anew, so that masks fit."""
    if drafter.kept_nodes or drafter.exit_threshold:
        return dataclasses.replace(drafter, kept_nodes=0, exit_threshold=0.0)
    return drafter


def _spread_row(row: DecodeState, num_slots: int) -> DecodeState:
    """A state of so many rows like this one, all done."""
    state = by_axis(lambda axis, x: jnp.repeat(x, num_slots, axis), row)
    return state.replace(done=jnp.ones_like(state.done))


def _insert_row(state: DecodeState, row: DecodeState, slot: jax.Array) -> DecodeState:
    """The state with one of its rows replaced by the row of another."""

    def put(axis, old, new):
        return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)

    return by_axis(put, state, row)


def _drop_rows(state: DecodeState, mask: jax.Array) -> DecodeState:
    return state.replace(done=state.done | mask)


def _revive_rows(state: DecodeState, mask: jax.Array) -> DecodeState:
    """Some rows that go on from their second token for as long as there is room."""
    room = state.tokens.shape[1]
    return state.replace(
        done=~mask, length=jnp.full_like(state.length, 2), limit=jnp.full_like(state.limit, room)
    )


_spread = jax.jit(_spread_row, static_argnums=1)
_insert = jax.jit(_insert_row, donate_argnums=0)
_drop = jax.jit(_drop_rows, donate_argnums=0)
_revive = jax.jit(_revive_rows, donate_argnums=0)

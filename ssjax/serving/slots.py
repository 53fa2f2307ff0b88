"""The state of the loop while serving: S slots, each empty or a request, and what changes them.

    start    one state of S rows that are all done
    insert   the row of a prompt that was read (`reading`) replaces a slot's
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
from ssjax.decoding.decoder import Decoder, HostState
from ssjax.decoding.drafters import Drafter
from ssjax.decoding.room import enough_memory
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, DecodeState
from ssjax.decoding.tree import DraftTree
from ssjax.parallel.partitioning import to_host
from ssjax.serving.adapters import Adapters
from ssjax.serving.extras import Special
from ssjax.serving.passes import by_axis, passes
from ssjax.serving.reading import Reader, ReaderLimits
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
      max_new_tokens: of a request; with the longest prompt it fixes the slots of the cache.
      reading: how prompts are read, and how long they may be.
      special: what some requests may need.
      adapters: of the decoder; None: it has none.

    Attributes:
      reader: that makes the rows.

    Raises:
      UserError: prompts cannot be read so.
    """

    def __init__(
        self,
        decoder: Decoder,
        sizes: Sequence[Size],
        sampling: Sampling,
        *,
        num_slots: int,
        max_new_tokens: int,
        reading: ReaderLimits,
        special: Special,
        adapters: Adapters | None = None,
    ):
        self.decoder = decoder
        self.num_slots = num_slots
        self.capacity = decoder.capacity(reading.max_prompt_tokens, max_new_tokens)
        self._special = special
        if special.penalties:
            sampling = dataclasses.replace(sampling, repetition_penalty=1.0, presence_penalty=0.0)
        self._sizes = tuple(sizes)
        way = max((size.way for size in sizes), key=lambda way: way.drafter.num_nodes)
        self._drafter = way.drafter
        self._drafter_params = way.drafter_params
        self._sampling = sampling
        spec = DecodeSpec(
            capacity=self.capacity,
            eos_ids=decoder.eos_ids,
            pad_id=decoder.pad_id,
            sampling=sampling,
            deferred=way.deferred,
            log_probs=True,
            num_likeliest=special.num_likeliest,
        )
        with enough_memory(num_slots, self.capacity):
            self.reader = Reader(decoder, way, spec, reading, special, adapters)
        self._state: DecodeState | None = None

    def start(self) -> None:
        """Empties the slots; compiles every program, if it is the first time.

        Raises:
          UserError: the device has no memory for so many slots.
        """
        with enough_memory(self.num_slots, self.capacity):
            rows = self.reader.start(self._nothing)
            with jax.set_mesh(self.decoder.mesh):
                self._state = _spread(rows[0], self.num_slots)
            for row in rows:
                # Twice: what one program returns is what the others must be compiled for.
                for _ in range(2):
                    self.insert(0, row)
                    for size in self._sizes:
                        self.run(1, size, [0], until_end=False)
                    self.drop([0])
            self.read()

    def start_special(self, sizes: Iterable[Size]) -> None:
        """Compiles the programs of some sizes for what `Special` says, if anything."""
        if not self._special.any:
            return
        row = self.reader.read(self._nothing)
        for size in sizes:
            for _ in range(2):
                self.insert(0, row)
                self.run(1, size, [0], until_end=False, special=True)
                self.drop([0])

    @property
    def _nothing(self) -> Asked:
        """A request of one token, to have programs compiled by."""
        return Asked((0,), 1, self._sampling, 0, 0, ())

    def insert(self, slot: int, row: DecodeState) -> None:
        """Puts a row into a slot, whatever was there; its first token is then known."""
        with jax.set_mesh(self.decoder.mesh):
            self._state = _insert(self._state, row, np.int32(slot))

    def measured(self, num_passes: int) -> list[Size]:
        """The sizes with the seconds of a pass, each with as many busy slots as it has rows.

        In turn, so that a slow moment of the machine meets all of them. What was in the slots is
        lost.

        Args:
          num_passes: that are run at once; what taking rows out and putting them back costs is
            shared by them.
        """
        deepest = self._drafter.max_depth
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
        return self._drafter.num_nodes

    def _every_token(self, *shape: int) -> np.ndarray | None:
        """A mask that allows every token, [..., W] int32; None where there are no masks."""
        words = self._special.num_words
        return np.full((*shape, words), -1, np.int32) if words else None

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
        model, params, _, spec = self.reader.static
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

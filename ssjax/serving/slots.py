"""The state of the loop while serving: S slots, each empty or a request, and what changes them.

    start    one state of S rows that are all done
    admit    prefill of one prompt by the program of its bucket, then its row replaces a slot's
    run      a few passes over all slots
    drop     rows that nobody waits for are done

Each is a program of fixed shapes: `Slots.start` runs all of them once, and nothing is compiled
after it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.decoding.decoder import (
    Decoder,
    HostState,
    passes_program,
    prefill_program,
    row_keys,
)
from ssjax.decoding.drafters import Way
from ssjax.decoding.request import PromptBatch
from ssjax.decoding.room import enough_memory
from ssjax.decoding.row_settings import settings_of
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, DecodeState, Rows
from ssjax.models.cache import KVCache
from ssjax.serving.ticket import Asked


class Slots:
    """S rows of a compiled loop.

    Args:
      decoder: the model, on one device.
      way: how drafts are written.
      sampling: penalties, bans and fewest new tokens of all requests, a part of the programs.
      num_slots: S.
      max_prompt_tokens, max_new_tokens: of a request; they fix the slots of the cache.
      num_eos_ids: ids that may end a request, at most.
    """

    def __init__(
        self,
        decoder: Decoder,
        way: Way,
        sampling: Sampling,
        *,
        num_slots: int,
        max_prompt_tokens: int,
        max_new_tokens: int,
        num_eos_ids: int,
    ):
        self.decoder = decoder
        self.num_slots = num_slots
        self.capacity = decoder.capacity(max_prompt_tokens, max_new_tokens)
        lengths = range(1, max_prompt_tokens + 1)
        self._buckets = sorted({decoder.bucket(length) for length in lengths})
        self._num_eos_ids = num_eos_ids
        self._drafter_params = way.drafter_params
        spec = DecodeSpec(
            capacity=self.capacity,
            eos_ids=decoder.eos_ids,
            pad_id=decoder.pad_id,
            sampling=sampling,
            deferred=way.deferred,
            log_probs=True,
        )
        self._static = (decoder.model, decoder.params, way.drafter, spec)
        self._state: DecodeState | None = None

    def start(self) -> None:
        """Empties the slots; compiles every program, if it is the first time.

        Raises:
          UserError: the device has no memory for so many slots.
        """
        with enough_memory(self.num_slots, self.capacity):
            asked = Asked((0,), 1, self._static[3].sampling, 0, 0, ())
            with jax.set_mesh(self.decoder.mesh):
                self._state = _spread(self._prefill(asked, self._buckets[0]), self.num_slots)
            for bucket in self._buckets:
                # Twice: what one program returns is what the others must be compiled for.
                for _ in range(2):
                    self._insert(self._prefill(asked, bucket), 0)
                    self.run(1, until_end=False)
                    self.drop([0])
            self.read()

    def admit(self, slot: int, asked: Asked) -> None:
        """Puts a request into a slot, whatever was there; its first token is then known."""
        self._insert(self._prefill(asked, self.decoder.bucket(len(asked.prompt))), slot)

    def run(self, num_passes: int, until_end: bool) -> None:
        """At most so many passes: fewer if all rows are done before.

        Args:
          num_passes: at most.
          until_end: the pass in which a row ends is the last.
        """
        with jax.set_mesh(self.decoder.mesh):
            self._state = passes_program(
                *self._static,
                self._state,
                np.int32(num_passes),
                self._drafter_params,
                np.bool_(until_end),
            )

    def drop(self, slots: list[int]) -> None:
        """The rows of these slots are done."""
        mask = np.zeros(self.num_slots, bool)
        mask[slots] = True
        with jax.set_mesh(self.decoder.mesh):
            self._state = _drop(self._state, mask)

    def read(self) -> HostState:
        """What completions are read from; waits for the device."""
        return HostState.of(self._state)

    def _prefill(self, asked: Asked, bucket: int) -> DecodeState:
        """A state of one row."""
        batch = PromptBatch(
            prompts=[asked.prompt],
            limits=np.array([asked.max_new_tokens], np.int32),
            seeds=np.array([asked.seed], np.int32),
            places=np.array([asked.place], np.int32),
            num_prompts=1,
        )
        settings = settings_of(asked.sampling, asked.eos_ids, self._num_eos_ids)
        with jax.set_mesh(self.decoder.mesh):
            rows = Rows(
                batch.padded(bucket, self.decoder.pad_id),
                batch.lengths,
                batch.limits,
                row_keys(batch.seeds, batch.places),
                settings,
            )
            return prefill_program(*self._static, rows, self._drafter_params)

    def _insert(self, row: DecodeState, slot: int) -> None:
        with jax.set_mesh(self.decoder.mesh):
            self._state = _insert(self._state, row, np.int32(slot))


def _by_axis(function, *states):
    """function(axis, *leaves) for the leaves of states; axis: which of a leaf's is the batch."""

    def of_cache(*caches):
        return jax.tree.map(lambda *x: function(1 if x[0].ndim == 5 else 0, *x), *caches)

    def of_any(*leaves):
        return of_cache(*leaves) if isinstance(leaves[0], KVCache) else function(0, *leaves)

    return jax.tree.map(of_any, *states, is_leaf=lambda x: isinstance(x, KVCache))


def _spread_row(row: DecodeState, num_slots: int) -> DecodeState:
    """A state of so many rows like this one, all done."""
    state = _by_axis(lambda axis, x: jnp.repeat(x, num_slots, axis), row)
    return state.replace(done=jnp.ones_like(state.done))


def _insert_row(state: DecodeState, row: DecodeState, slot: jax.Array) -> DecodeState:
    """The state with one of its rows replaced by the row of another."""

    def put(axis, old, new):
        return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)

    return _by_axis(put, state, row)


def _drop_rows(state: DecodeState, mask: jax.Array) -> DecodeState:
    return state.replace(done=state.done | mask)


_spread = jax.jit(_spread_row, static_argnums=1)
_insert = jax.jit(_insert_row, donate_argnums=0)
_drop = jax.jit(_drop_rows, donate_argnums=0)

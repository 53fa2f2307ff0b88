"""Prompts before they get into their slots: read whole, or piece by piece after what is known.

    whole    one program for each prompt bucket
    pieces   one program for each length of a piece, whatever comes before it: the piece of a long
             prompt, or what is new after a beginning that was read for another request

What is known of a beginning are its keys and values, kept in blocks (`prefixes`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.decoding.decoder import Decoder, prefill_program, row_keys
from ssjax.decoding.drafters import Way
from ssjax.decoding.request import PromptBatch
from ssjax.decoding.row_penalties import penalties_of
from ssjax.decoding.row_settings import settings_of
from ssjax.decoding.state import DecodeSpec, DecodeState, Part, Rows
from ssjax.errors import UserError
from ssjax.models.attention import KV
from ssjax.models.cache import KVCache
from ssjax.models.transformer import Transformer
from ssjax.serving.adapters import Adapter, Adapters
from ssjax.serving.extras import Special
from ssjax.serving.prefixes import Prefixes
from ssjax.serving.ticket import Asked

BLOCK_TOKENS = 32  # of a beginning that is kept; a block less is one to be read


@dataclasses.dataclass(frozen=True)
class ReaderLimits:
    """The sizes of a reader."""

    max_prompt_tokens: int
    num_eos_ids: int  # that may end a request, at most
    piece: int  # tokens that are read at a time, at most; 0: prompts are read whole
    prefix_bytes: int  # of beginnings that are kept; 0: none are. Needs pieces


@dataclasses.dataclass
class Reading:
    """A prompt that is being read."""

    asked: Asked
    rows: Rows  # of one prompt
    known: int  # tokens that need not be read
    start: int  # tokens that have been
    cache: KVCache | None = None  # of them, where it is read in pieces
    row: DecodeState | None = None  # of the whole prompt

    @property
    def left(self) -> int:
        """Tokens that are to be read."""
        return len(self.asked.prompt) - self.start


class Reader:
    """What turns prompts into rows.

    Args:
      decoder: the model, on one device.
      way: how drafts are written.
      spec: of the loop.
      limits: sizes.
      special: what some requests may need.
      adapters: of the decoder; None: it has none.

    Raises:
      UserError: the model or the drafter cannot read in pieces.
    """

    def __init__(
        self,
        decoder: Decoder,
        way: Way,
        spec: DecodeSpec,
        limits: ReaderLimits,
        special: Special,
        adapters: Adapters | None,
    ):
        self._decoder, self._way, self._spec = decoder, way, spec
        self._limits, self._special, self._adapters = limits, special, adapters
        if limits.prefix_bytes and not limits.piece:
            raise UserError("a prefix cache needs prompts that are read in pieces: --prefill_piece")
        if limits.piece and (decoder.model.streams.main_reads_streams or way.drafter_params):
            raise UserError(
                "prompts cannot be read in pieces where main rows read streams or a draft model "
                "drafts; leave --prefill_piece and --prefix_cache_mb out"
            )
        lengths = range(1, limits.max_prompt_tokens + 1)
        buckets = sorted({decoder.bucket(length) for length in lengths})
        self._longest = buckets[-1]
        self.widths = buckets
        if limits.piece:
            self.widths = sorted({min(bucket, limits.piece) for bucket in buckets})
        self.prefixes: Prefixes | None = None
        self._empty: KVCache | None = None
        if limits.piece:
            with jax.set_mesh(decoder.mesh):
                self._empty = empty_cache(decoder.model, spec.capacity)
        if limits.prefix_bytes:
            slot_bytes = sum(x.nbytes for x in jax.tree.leaves(self._empty)) // spec.capacity
            self.prefixes = Prefixes(limits.prefix_bytes, slot_bytes * BLOCK_TOKENS, BLOCK_TOKENS)

    @property
    def static(self) -> tuple:
        """What the programs take first; the leaves of adapters change, their shapes do not."""
        decoder, adapters = self._decoder, self._adapters
        params = decoder.params if adapters is None else adapters.params
        return decoder.model, params, self._way.drafter, self._spec

    def first_cost(self, asked: Asked) -> int:
        """Tokens, padding included, that the first step of a request reads."""
        known = 0
        if self.prefixes is not None:
            known = self.prefixes.num_known(asked.adapter, asked.prompt)
        return self._width(len(asked.prompt) - known)

    def cost(self, reading: Reading) -> int:
        """Tokens, padding included, that the next step reads."""
        return self._width(reading.left)

    def begin(self, asked: Asked, allowed: np.ndarray | None = None) -> Reading:
        """A prompt of which nothing is read yet but what is known.

        Args:
          asked: what for.
          allowed: [1, 1, W] int32, tokens that the output may begin with; None: any.
        """
        known, cache = 0, self._empty
        with jax.set_mesh(self._decoder.mesh):
            for block in self._known(asked):
                cache = _paste(cache, block, np.int32(known))
                known += BLOCK_TOKENS
        return Reading(asked, self._rows(asked, allowed), known, known, cache)

    def _known(self, asked: Asked) -> list[KVCache]:
        """Blocks of the beginning of its prompt."""
        if self.prefixes is None:
            return []
        return self.prefixes.find(asked.adapter, asked.prompt)

    def _rows(self, asked: Asked, allowed: np.ndarray | None = None) -> Rows:
        batch = PromptBatch(
            prompts=[asked.prompt],
            limits=np.array([asked.max_new_tokens], np.int32),
            seeds=np.array([asked.seed], np.int32),
            places=np.array([asked.place], np.int32),
            num_prompts=1,
        )
        width = self._width(len(asked.prompt)) if self._empty is None else self._longest
        sampling, penalties, special = asked.sampling, None, self._special
        if special.penalties:
            repetition, presence = sampling.repetition_penalty, sampling.presence_penalty
            penalties = penalties_of(repetition, presence, asked.frequency_penalty)
        if special.num_words and allowed is None:
            allowed = np.full((1, 1, special.num_words), -1, np.int32)
        eos = (asked.eos_ids, self._limits.num_eos_ids)
        with jax.set_mesh(self._decoder.mesh):
            return Rows(
                batch.padded(width, self._decoder.pad_id),
                batch.lengths,
                batch.limits,
                row_keys(batch.seeds, batch.places),
                settings_of(sampling, *eos, drafting=asked.drafting),
                allowed,
                penalties,
                self._place(asked),
            )

    def advance(self, reading: Reading) -> None:
        """Reads on; at the end the row is there, and what was read is kept."""
        width = self.cost(reading)
        with jax.set_mesh(self._decoder.mesh):
            row = self._run(reading.rows, reading.cache, reading.start, width)
            reading.start += min(width, reading.left)
            if reading.left:
                reading.cache = row.cache
                return
            reading.row = row
            if self.prefixes is not None:
                asked = reading.asked
                self.prefixes.keep(
                    asked.adapter,
                    asked.prompt,
                    lambda start: _cut(row.cache, np.int32(start), BLOCK_TOKENS),
                )

    def read(self, asked: Asked) -> DecodeState:
        """All steps at once."""
        reading = self.begin(asked)
        while reading.row is None:
            self.advance(reading)
        return reading.row

    def forget(self, adapter: Adapter) -> None:
        """Of an adapter that is unloaded nothing is kept."""
        if self.prefixes is not None:
            self.prefixes.forget(adapter)

    def start(self, asked: Asked) -> list[DecodeState]:
        """Runs every program with whatever it will be given, so that it is compiled.

        Args:
          asked: of one token.

        Returns:
          A row by each program that gives one.
        """
        if self._empty is None:
            most = self._limits.max_prompt_tokens
            prompts = [asked.prompt * min(width, most) for width in self.widths]
            return [self.read(dataclasses.replace(asked, prompt=each)) for each in prompts]
        rows = self._start_pieces(asked, self._empty)
        caches = [rows[0].cache]
        with jax.set_mesh(self._decoder.mesh):
            for cache in (self._empty, *caches) if self.prefixes is not None else ():
                block = _cut(cache, np.int32(0), BLOCK_TOKENS)
                caches.append(_paste(cache, block, np.int32(0)))
                caches.append(_paste(caches[-1], block, np.int32(0)))
        for cache in caches:
            self._start_pieces(asked, cache)
        return rows

    def _start_pieces(self, asked: Asked, cache: KVCache) -> list[DecodeState]:
        """A row by the program of each width."""
        rows = self._rows(asked)
        with jax.set_mesh(self._decoder.mesh):
            return [self._run(rows, cache, 0, width) for width in self.widths]

    def _run(self, rows: Rows, cache: KVCache | None, start: int, width: int) -> DecodeState:
        part = None if cache is None else Part(cache, np.array([start], np.int32), width)
        return prefill_program(*self.static, rows, self._way.drafter_params, part)

    def _width(self, num_tokens: int) -> int:
        """Of the program that reads so many tokens, or the first of them."""
        bucket = self._decoder.bucket(num_tokens)
        return min(bucket, self._limits.piece) if self._limits.piece else bucket

    def _place(self, asked: Asked) -> np.ndarray | None:
        """[1] int32, of its adapter in the stack; None without adapters."""
        if self._adapters is None:
            return None
        return np.array([asked.adapter.place if asked.adapter else 0], np.int32)


def empty_cache(model: Transformer, capacity: int) -> KVCache:
    """Of one row of a decoder's model, zeros."""
    config = model.config
    shape = (1, config.num_kv_heads, capacity, config.head_dim)

    def zeros(*axes):
        return KV(*(jnp.zeros((*axes, *shape), config.dtype) for _ in range(2)))

    def stack(num_layers):
        if not num_layers:
            return ()
        return zeros(num_layers) if model.scan else tuple(zeros() for _ in range(num_layers))

    above = model.streams.num_stream_layers
    return KVCache(stack(config.num_layers - above), stack(above))


def _cut_block(cache: KVCache, start: jax.Array, width: int) -> KVCache:
    def cut(leaf):
        return jax.lax.dynamic_slice_in_dim(leaf, start, width, leaf.ndim - 2)

    return jax.tree.map(cut, cache)


def _paste_block(cache: KVCache, block: KVCache, start: jax.Array) -> KVCache:
    def paste(leaf, new):
        return jax.lax.dynamic_update_slice_in_dim(leaf, new, start, leaf.ndim - 2)

    return jax.tree.map(paste, cache, block)


_cut = jax.jit(_cut_block, static_argnums=2)
_paste = jax.jit(_paste_block)

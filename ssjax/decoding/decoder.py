"""Prompts in, completions out: padding to buckets, batching, the compiled functions.

The two phases are jitted here, once for the process. For one model, drafter, spec and batch
size a prefill is compiled per prompt bucket and a loop per capacity, and never again; between
them stands a small program where outputs may be longer than what a prefill has slots for.
`num_compilations` counts all of them.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ssjax.decoding import loop
from ssjax.decoding.completion import Completion
from ssjax.decoding.drafters import Way
from ssjax.decoding.request import PromptBatch, Request
from ssjax.decoding.room import check_positions, enough_memory, too_large
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, DecodeState, Rows
from ssjax.errors import UserError
from ssjax.models.execution import Execution
from ssjax.models.head import with_draft_head
from ssjax.models.int8 import in_eight_bits
from ssjax.models.parameters import Params, cast, count, join_projections, unstack_layers
from ssjax.models.transformer import Transformer
from ssjax.parallel import partitioning
from ssjax.parallel.partitioning import to_host

# Rows have room for a multiple of this, so that a few more tokens asked for do not compile anew.
# Slots cost time, filled or not: of SmolLM2-135M a plain pass takes 18.0 ms of two CPU cores with
# 128 slots, 19.0 with 256 and 19.9 with 512. With 64 at most 3 % is paid for those not needed.
CAPACITY_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class BatchTiming:
    """Wall-clock seconds of one batch, compilation included if the batch caused one."""

    prefill: float  # prompts read and first tokens known
    decode: float  # all passes


@dataclasses.dataclass(frozen=True)
class _Prefilled:
    """A batch after its prefill."""

    static: tuple  # what the programs take before the state: model, params, drafter, spec
    drafter_params: Params | None  # what they take last
    state: DecodeState
    batch: PromptBatch
    seconds: float

    def completions(self, state: DecodeState) -> list[Completion]:
        """What its prompts have become in a later state."""
        _, _, drafter, spec = self.static
        found = completions_of(state, self.batch.lengths, spec.eos_ids, drafter.max_depth)
        return found[: self.batch.num_prompts]


class Decoder:
    """A model ready to decode.

    Args:
      model: scanned form.
      params: scanned form, float32; held in the model's compute dtype.
      eos_ids: ids that end a completion, at least one.
      pad_id: fills short prompts; may also occur inside prompts.
      prompt_buckets: padded prompt lengths, to bound the number of compiled programs. A
        longer prompt is padded to a multiple of the largest.
      scan: decode in the scanned form; None: on CPU unrolled, elsewhere scanned.
      mesh: that the parameters are divided over; None: the first device.
      int8: hold projections, embedding and heads in eight bits, see `models.int8`.
    """

    def __init__(
        self,
        model: Transformer,
        params: Params,
        *,
        eos_ids: Sequence[int],
        pad_id: int,
        prompt_buckets: Sequence[int],
        scan: bool | None = None,
        mesh: Mesh | None = None,
        int8: bool = False,
    ):
        self.mesh = mesh or partitioning.one_device()
        if scan is None:
            scan = self.mesh.devices.flat[0].platform != "cpu"
        execution = decoding_execution(self.mesh, scan)
        self.model = model.clone(scan=scan, execution=execution)
        params = cast(params, model.config.dtype)
        if not scan:
            params = unstack_layers(params, in_place=execution.joined_projections)
        params = join_projections(params) if execution.joined_projections else params
        self.num_parameters = count(params)
        with jax.set_mesh(self.mesh):
            params = with_draft_head(params, model.config, model.streams)
            self.params = in_eight_bits(params) if int8 else params
        self.int8 = int8
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.prompt_buckets = tuple(sorted(prompt_buckets))

    def generate(self, request: Request, way: Way) -> list[Completion]:
        """Decodes prompts in batches and returns completions in their order.

        Errors are those of `run_batches`.
        """
        return [c for completions, _ in self.run_batches(request, way) for c in completions]

    def run_batches(
        self, request: Request, way: Way
    ) -> Iterator[tuple[list[Completion], BatchTiming]]:
        """Like `generate`, one batch at a time with its time.

        Args:
          request: what is asked for.
          way: how drafts are written, and when streams run.

        Raises:
          UserError: more tokens than the model has positions for or the device has memory for, or
            a banned token that the model does not have.
        """
        for prefilled in self._prefilled(request, way):
            began = time.perf_counter()
            state = prefilled.state
            with jax.set_mesh(self.mesh), enough_memory(*state.tokens.shape):
                state = decode_program(*prefilled.static, state, prefilled.drafter_params)
                state.length.block_until_ready()
            timing = BatchTiming(prefilled.seconds, time.perf_counter() - began)
            yield prefilled.completions(state), timing

    def stream(self, request: Request, way: Way, *, passes: int = 1) -> Iterator[Completion]:
        """The completion of one prompt while it grows: after the prefill and every few passes.

        Its finish is "unfinished" until the last one, which is what `generate` returns. Errors are
        those of `run_batches`.

        Args:
          request: of one prompt, in a batch of its own.
          way: how drafts are written, and when streams run.
          passes: decode passes between two of them, at least 1; the device is read so often.
        """
        (prefilled,) = self._prefilled(request, way)
        state = prefilled.state
        while True:
            (completion,) = prefilled.completions(state)
            if to_host(state.done)[0]:
                yield completion
                return
            yield dataclasses.replace(completion, finish="unfinished")
            with jax.set_mesh(self.mesh):
                state = passes_program(*prefilled.static, state, passes, prefilled.drafter_params)

    def _prefilled(self, request: Request, way: Way) -> Iterator[_Prefilled]:
        """The batches of a request after their prefills, one at a time."""
        self._check_bans(request.sampling)
        room = int(request.limits.max(initial=0))
        for batch in request.batches():
            check_positions(self.model.config, batch.longest)
            capacity = self.capacity(int(batch.lengths.max()), room)
            if capacity > np.iinfo(np.int32).max:
                raise UserError(too_large(request.batch_size, capacity))
            spec = DecodeSpec(
                capacity=capacity,
                eos_ids=self.eos_ids,
                pad_id=self.pad_id,
                sampling=request.sampling,
                deferred=way.deferred,
                log_probs=request.log_probs,
                accept=request.accept,
            )
            yield self._prefill(batch, spec, way)

    def _prefill(self, batch: PromptBatch, spec: DecodeSpec, way: Way) -> _Prefilled:
        """Reads the prompts of a batch."""
        size, capacity = len(batch.prompts), spec.capacity
        static = (self.model, self.params, way.drafter, spec)
        # See `loop.grow` for the slots that the prefill needs.
        fewest = self.capacity(int(batch.lengths.max()), 2 + way.drafter.max_depth)
        reading = dataclasses.replace(spec, capacity=min(fewest, capacity))
        with enough_memory(size, capacity):
            padded = batch.padded(self.bucket(int(batch.lengths.max())), self.pad_id)
        per_row = (padded, batch.lengths, batch.limits, batch.seeds, batch.places)
        sharding = partitioning.batch_sharding(self.mesh, size)
        *inputs, seeds, places = jax.device_put(per_row, sharding)
        with jax.set_mesh(self.mesh), enough_memory(size, capacity):
            rows = Rows(*inputs, row_keys(seeds, places))
            began = time.perf_counter()
            state = prefill_program(*static[:3], reading, rows, way.drafter_params)
            if reading.capacity < capacity:
                state = grow_program(state, rows, capacity, self.pad_id)
            state.length.block_until_ready()
            seconds = time.perf_counter() - began
        return _Prefilled(static, way.drafter_params, state, batch, seconds)

    def one_batch_per_bucket(
        self, prompts: Sequence[Sequence[int]], batch_size: int
    ) -> list[list[Sequence[int]]]:
        """The first batch of each bucket that `run_batches` would pad prompts to.

        Decoding them compiles every program that the prompts need.
        """
        batches = [
            list(prompts[start : start + batch_size])
            for start in range(0, len(prompts), batch_size)
        ]
        first = {}
        for batch in batches:
            first.setdefault(self.bucket(max(len(prompt) for prompt in batch)), batch)
        return list(first.values())

    def capacity(self, prompt_length: int, max_new_tokens: int) -> int:
        """Slots per row that a batch is decoded in, by its longest prompt and limit."""
        room = self.bucket(prompt_length) + max_new_tokens
        return -(-room // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE

    def _check_bans(self, sampling: Sampling) -> None:
        vocab_size = self.model.config.vocab_size
        unknown = [token for token in sampling.banned_tokens if not 0 <= token < vocab_size]
        if unknown:
            raise UserError(
                f"token {unknown[0]} cannot be banned: the vocabulary has ids 0 to {vocab_size - 1}"
            )
        never = set(sampling.banned_tokens)
        if sampling.min_new_tokens > 0:
            never |= set(self.eos_ids).intersection(range(vocab_size))
        if len(never) == vocab_size:
            raise UserError("no token is left that may be drawn; ban fewer")

    def bucket(self, length: int) -> int:
        """The length that a batch is padded to, by its longest prompt."""
        for bucket in self.prompt_buckets:
            if length <= bucket:
                return bucket
        largest = self.prompt_buckets[-1]
        return -(-length // largest) * largest


def decoding_execution(mesh: Mesh, scan: bool) -> Execution:
    """How models are computed that decode on a mesh. scan: in the scanned form."""
    platform = mesh.devices.flat[0].platform
    alone_on_cpu = platform == "cpu" and mesh.size == 1
    # Rows of several devices stay apart.
    whole_batch = mesh.shape["data"] * mesh.shape["fsdp"] == 1
    return Execution(
        platform,
        fused_attention=platform == "tpu",
        few_rows_as_columns=alone_on_cpu,
        few_rows_padded=platform == "tpu" and whole_batch,
        joined_projections=alone_on_cpu and not scan,
    )


@dataclasses.dataclass(frozen=True)
class HostState:
    """What completions are read from, as NumPy arrays; fields as in `DecodeState`."""

    tokens: np.ndarray
    born: np.ndarray
    drafted: np.ndarray
    length: np.ndarray
    calls: np.ndarray
    done: np.ndarray
    failed: np.ndarray
    log_probs: np.ndarray | None

    @classmethod
    def of(cls, state: DecodeState) -> "HostState":
        """One transfer from the device."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**to_host({name: getattr(state, name) for name in names}))

    def completion(
        self, row: int, prompt_length: int, eos_ids: Sequence[int], max_depth: int
    ) -> Completion:
        """What the prompt of a row has become; its finish holds if the row is done.

        Args:
          row: which.
          prompt_length: of its prompt.
          eos_ids: that end it.
          max_depth: of the drafter.
        """
        new = slice(prompt_length, int(self.length[row]))
        ids, calls = tuple(self.tokens[row, new].tolist()), int(self.calls[row])
        ended = "eos" if ids and ids[-1] in eos_ids else "length"
        born, drafted = self.born[row, new], self.drafted[row, new]
        runs = np.bincount(born, minlength=calls + 1)
        kept = np.bincount(born[drafted], minlength=calls + 1)
        log_probs = None if self.log_probs is None else tuple(self.log_probs[row, new].tolist())
        return Completion(
            tokens=ids,
            finish="error" if self.failed[row] else ended,
            runs=tuple(runs.tolist()),
            kept=tuple(kept[1:].tolist()),
            max_depth=max_depth,
            log_probs=log_probs,
        )


def completions_of(
    state: DecodeState, prompt_length: np.ndarray, eos_ids: tuple[int, ...], max_depth: int
) -> list[Completion]:
    """Reads the completions of a state; one transfer from the device.

    Args:
      state: of a finished loop, or of one that is to go on.
      prompt_length: [B] int32.
      eos_ids: that ended the rows.
      max_depth: of the drafter.
    """
    host = HostState.of(state)
    return [
        host.completion(row, int(length), eos_ids, max_depth)
        for row, length in enumerate(prompt_length)
    ]


_compilations = 0


def num_compilations() -> int:
    """How often this process has traced a prefill, a decode loop or what stands between them."""
    return _compilations


def _counted(function):
    @functools.wraps(function)
    def traced(*args):
        global _compilations
        _compilations += 1
        return function(*args)

    return traced


@jax.jit
def row_keys(seeds: jax.Array, places: jax.Array) -> jax.Array:
    """The keys of `Rows` by the two numbers [B] int32 of `Request.key_parts`."""
    return jax.vmap(lambda seed, place: jax.random.fold_in(jax.random.key(seed), place))(
        seeds, places
    )


prefill_program = jax.jit(_counted(loop.prefill), static_argnums=(0, 2, 3))
grow_program = jax.jit(_counted(loop.grow), static_argnums=(2, 3))
decode_program = jax.jit(_counted(loop.decode), static_argnums=(0, 2, 3), donate_argnums=4)
passes_program = jax.jit(_counted(loop.decode_passes), static_argnums=(0, 2, 3), donate_argnums=4)

"""Prompts in, completions out: padding to buckets, batching, the compiled functions.

The two phases are jitted here, once for the process. For one model, drafter, spec and batch
size a prefill is compiled per prompt bucket and a loop per capacity, and never again;
`num_compilations` counts them.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ssjax.decoding import loop
from ssjax.decoding.acceptance import RULES
from ssjax.decoding.drafters import Drafter
from ssjax.decoding.loop import DecodeSpec, DecodeState
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.messages import say_once
from ssjax.models.execution import Execution
from ssjax.models.parameters import Params, cast, join_projections, unstack_layers
from ssjax.models.transformer import Transformer
from ssjax.parallel import partitioning
from ssjax.parallel.partitioning import to_host

# Rows have room for a multiple of this, so that a few more tokens asked for do not compile anew.
CAPACITY_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class Completion:
    """What one prompt became."""

    tokens: tuple[int, ...]  # new ids; a final end-of-sequence id is included
    # "eos" or "length"; "error" where the model's output was not finite behind these tokens;
    # "stop" where `ssjax.run` has cut it at a stop string; "unfinished" while it is streamed;
    # "empty" where `ssjax.generate` was given a blank line
    finish: str
    calls: int  # decode passes while this row was active; prefill not counted
    runs: tuple[int, ...]  # tokens emitted by prefill, then by each pass; sums to len(tokens)
    accepted: tuple[int, ...]  # passes that kept a draft node at depth 1, 2, ...
    # Of the tokens under the model's own distribution: temperature 1, without penalties, bans
    # and cuts. None where not asked for.
    log_probs: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        return f"Completion({len(self.tokens)} tokens, {self.finish}, {self.calls} passes)"


@dataclasses.dataclass(frozen=True)
class BatchTiming:
    """Wall-clock seconds of one batch, compilation included if the batch caused one."""

    prefill: float  # prompts read and first tokens known
    decode: float  # all passes


@dataclasses.dataclass(frozen=True)
class _Prefilled:
    """A batch behind its prefill."""

    static: tuple  # what the programs take before the state
    state: DecodeState
    lengths: np.ndarray  # [B] int32, of the prompts
    num_prompts: int  # rows that are prompts; the others fill the batch
    seconds: float


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
      drafter_params: of drafters that have their own, in the form that those name; they stand on
        the same devices.
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
        drafter_params: Params | None = None,
    ):
        self.mesh = mesh or partitioning.one_device()
        platform = self.mesh.devices.flat[0].platform
        scan = platform != "cpu" if scan is None else scan
        alone_on_cpu = platform == "cpu" and self.mesh.size == 1
        joined = alone_on_cpu and not scan
        execution = Execution(platform, few_rows_as_columns=alone_on_cpu, joined_projections=joined)
        self.model = model.clone(scan=scan, execution=execution)
        params = cast(params, model.config.dtype)
        params = params if scan else unstack_layers(params)
        self.params = join_projections(params) if joined else params
        self.drafter_params = drafter_params
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.prompt_buckets = tuple(sorted(prompt_buckets))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        drafter: Drafter,
        sampling: Sampling,
        deferred: bool,
        batch_size: int,
        seed: int | Sequence[int],
        log_probs: bool = False,
        accept: str = "exact",
        numbers: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Decodes prompts in batches and returns completions in their order.

        Args:
          prompts: ids of each prompt, at least one id each.
          max_new_tokens: for all prompts, or one number each; 0 is allowed.
          drafter: how drafts are written; does not change the completions.
          sampling: the target distribution.
          deferred: execution order of the streams; does not change the completions.
          batch_size: prompts decoded together; does not change the completions.
          seed: with temperature above 0, prompt i is sampled with key (seed, numbers[i]). With one
            seed for each prompt, prompt i has the key (seed[i], 0), whatever the other prompts are.
          log_probs: also return the log-probabilities of the tokens.
          accept: "exact", or "typical" of `ssjax.decoding.acceptance`, under which drafts do change
            the completions.
          numbers: one for each prompt; None: 0, 1, ...
        """
        completions = []
        for batch, _ in self.run_batches(
            prompts, max_new_tokens, drafter=drafter, sampling=sampling,
            deferred=deferred, batch_size=batch_size, seed=seed, log_probs=log_probs,
            accept=accept, numbers=numbers,
        ):  # fmt: skip
            completions.extend(batch)
        return completions

    def run_batches(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        drafter: Drafter,
        sampling: Sampling,
        deferred: bool,
        batch_size: int,
        seed: int | Sequence[int],
        log_probs: bool = False,
        accept: str = "exact",
        numbers: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[Completion], BatchTiming]]:
        """Like `generate`, one batch at a time with its time.

        Raises:
          ValueError: an empty prompt, a negative limit, or not as many seeds or numbers as prompts.
          UserError: more tokens than the model has positions for, a banned token that it does
            not have, or typical acceptance of greedy tokens.
        """
        for batch in self._prefilled(
            prompts, max_new_tokens, drafter, sampling, deferred, batch_size, seed, log_probs,
            accept, numbers,
        ):  # fmt: skip
            began = time.perf_counter()
            with jax.set_mesh(self.mesh), _enough_memory(*batch.state.tokens.shape):
                state = decode_program(*batch.static, batch.state, self.drafter_params)
                state.length.block_until_ready()
            timing = BatchTiming(batch.seconds, time.perf_counter() - began)
            completions = completions_of(state, batch.lengths, self.eos_ids)
            yield completions[: batch.num_prompts], timing

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        drafter: Drafter,
        sampling: Sampling,
        deferred: bool,
        seed: int,
        number: int = 0,
        passes: int = 1,
        log_probs: bool = False,
        accept: str = "exact",
    ) -> Iterator[Completion]:
        """The completion of one prompt while it grows: behind the prefill and every few passes.

        Its finish is "unfinished" until the last one, which is what `generate` returns. Arguments
        and errors as there.

        Args:
          number: of `numbers` there.
          passes: decode passes between two of them, at least 1; the device is read so often.
        """
        (batch,) = self._prefilled(
            [prompt], max_new_tokens, drafter, sampling, deferred, 1, seed, log_probs, accept,
            [number],
        )  # fmt: skip
        state = batch.state
        while True:
            (completion,) = completions_of(state, batch.lengths, self.eos_ids)
            if to_host(state.done)[0]:
                yield completion
                return
            yield dataclasses.replace(completion, finish="unfinished")
            with jax.set_mesh(self.mesh):
                state = passes_program(*batch.static, state, passes, self.drafter_params)

    def _prefilled(
        self, prompts, max_new_tokens, drafter, sampling, deferred, batch_size, seed, log_probs,
        accept, numbers,
    ) -> Iterator["_Prefilled"]:  # fmt: skip
        """The batches of prompts, checked, padded and read; arguments as in `generate`."""
        self._check_bans(sampling)
        if accept not in RULES:
            raise ValueError(f"accept {accept!r} must be one of {', '.join(RULES)}")
        if accept == "typical" and sampling.temperature == 0:
            raise UserError(
                "typical acceptance needs a temperature above 0: of greedy decoding only one token "
                "is right"
            )
        limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), len(prompts))
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("a prompt needs at least one token")
        if len(limits) and limits.min() < 0:
            raise ValueError("max_new_tokens must be 0 or more")
        seeds, places = _key_parts(seed, numbers, len(prompts))
        room = int(limits.max(initial=0))
        for start in range(0, len(prompts), batch_size):
            stop = min(start + batch_size, len(prompts))
            # A short last batch repeats its last prompt with a limit of 0: the same
            # compiled program, and rows that are done from the start.
            rows = [min(i, stop - 1) for i in range(start, start + batch_size)]
            batch_limits = np.where(np.arange(start, start + batch_size) < stop, limits[rows], 0)
            batch_prompts = [prompts[i] for i in rows]
            longest = max(len(prompt) for prompt in batch_prompts)
            asked = (len(p) + int(n) for p, n in zip(batch_prompts, batch_limits, strict=True))
            self._check_room(max(asked))
            bucket, capacity = self._bucket(longest), self.capacity(longest, room)
            if capacity > np.iinfo(np.int32).max:
                raise UserError(_too_large(batch_size, capacity))
            with _enough_memory(batch_size, capacity):
                padded = np.full((batch_size, bucket), self.pad_id, np.int32)
            for row, prompt in enumerate(batch_prompts):
                padded[row, : len(prompt)] = prompt
            lengths = np.array([len(prompt) for prompt in batch_prompts], np.int32)
            spec = DecodeSpec(
                capacity, self.eos_ids, self.pad_id, sampling, deferred, log_probs, accept
            )

            per_row = (padded, lengths, batch_limits.astype(np.int32), seeds[rows], places[rows])
            sharding = partitioning.batch_sharding(self.mesh, batch_size)
            *inputs, row_seeds, row_places = jax.device_put(per_row, sharding)
            with jax.set_mesh(self.mesh), _enough_memory(batch_size, capacity):
                keys = _row_keys(row_seeds, row_places)
                began = time.perf_counter()
                static = (self.model, self.params, drafter, spec)
                state = prefill_program(*static, *inputs, keys, self.drafter_params)
                state.length.block_until_ready()
                seconds = time.perf_counter() - began
            yield _Prefilled(static, state, lengths, stop - start, seconds)

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
            first.setdefault(self._bucket(max(len(prompt) for prompt in batch)), batch)
        return list(first.values())

    def capacity(self, prompt_length: int, max_new_tokens: int) -> int:
        """Slots per row that a batch is decoded in, by its longest prompt and limit."""
        room = self._bucket(prompt_length) + max_new_tokens
        return -(-room // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE

    def _check_room(self, num_tokens: int) -> None:
        """Whether a prompt with its output fits; a model may be asked for more than it has seen."""
        config = self.model.config
        if num_tokens <= config.max_positions or not config.max_positions:
            return
        if config.positions == "learned":
            raise UserError(
                f"prompt and output may have {num_tokens} tokens, but the model has positions for "
                f"{config.max_positions}; shorten the prompt or lower max_new_tokens"
            )
        # Without the number of tokens, which would make it another line for every batch.
        say_once(
            "a prompt with its new tokens is longer than the "
            f"{config.max_positions} positions that the model is made for "
            "(max_position_embeddings); what it writes behind them may be worthless"
        )

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

    def _bucket(self, length: int) -> int:
        for bucket in self.prompt_buckets:
            if length <= bucket:
                return bucket
        largest = self.prompt_buckets[-1]
        return -(-length // largest) * largest


def completions_of(
    state: DecodeState, prompt_length: np.ndarray, eos_ids: tuple[int, ...]
) -> list[Completion]:
    """Reads the completions of a finished state; one transfer from the device."""
    fields = (state.tokens, state.born, state.length, state.calls, state.accepted, state.failed)
    *host, log_probs = to_host((*fields, state.log_probs))
    completions = []
    for row, values in enumerate(zip(*host, strict=True)):
        tokens, born, length, calls, accepted, failed = values
        new = slice(int(prompt_length[row]), int(length))
        ids = tuple(int(token) for token in tokens[new])
        ended = "eos" if ids and ids[-1] in eos_ids else "length"
        runs = np.bincount(born[new], minlength=int(calls) + 1)
        completions.append(
            Completion(
                tokens=ids,
                finish="error" if failed else ended,
                calls=int(calls),
                runs=tuple(int(run) for run in runs),
                accepted=tuple(int(count) for count in accepted),
                log_probs=None if log_probs is None else tuple(log_probs[row, new].tolist()),
            )
        )
    return completions


@contextlib.contextmanager
def _enough_memory(rows: int, capacity: int) -> Iterator[None]:
    """One line where the device, or the host, has no room. Raises: UserError."""
    try:
        yield
    except MemoryError:
        raise UserError(_too_large(rows, capacity)) from None
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        raise UserError(_too_large(rows, capacity)) from None


def _too_large(rows: int, capacity: int) -> str:
    return (
        f"there is not enough memory for {rows} rows of {capacity} tokens (prompt and output); "
        "lower batch_size or max_new_tokens, shorten the prompts, or divide the model over more "
        "devices"
    )


def check_finite(completion: Completion, number: int) -> None:
    """For those who can do nothing with half an output. Raises: UserError naming the prompt."""
    if completion.finish == "error":
        raise UserError(not_finite(completion, number))


def not_finite(completion: Completion, number: int) -> str:
    """The line about a completion whose finish is "error". number: of its prompt, from 1."""
    return (
        f"prompt {number}: the model's output is not finite from token {len(completion.tokens) + 1}"
        " on; look for nan, inf or very large values in its weights"
    )


_compilations = 0


def num_compilations() -> int:
    """How often this process has traced a prefill or a decode loop."""
    return _compilations


def _counted(function):
    @functools.wraps(function)
    def traced(*args):
        global _compilations
        _compilations += 1
        return function(*args)

    return traced


def _key_parts(
    seed: int | Sequence[int], numbers: Sequence[int] | None, num_prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The two numbers that make the key of each prompt, [num_prompts] int32 each."""
    places = np.array(range(num_prompts) if numbers is None else numbers, np.int32)
    if isinstance(seed, int | np.integer):
        seeds = [seed] * num_prompts
    else:
        seeds, places = list(seed), np.zeros_like(places)
    if len(seeds) != num_prompts:
        raise ValueError(f"{len(seeds)} seeds for {num_prompts} prompts")
    if len(places) != num_prompts:
        raise ValueError(f"{len(places)} numbers for {num_prompts} prompts")
    try:
        return np.array(seeds, np.int32), places
    except OverflowError:
        raise UserError("a seed must lie between -2147483648 and 2147483647") from None


@jax.jit
def _row_keys(seeds, places):
    return jax.vmap(lambda seed, place: jax.random.fold_in(jax.random.key(seed), place))(
        seeds, places
    )


prefill_program = jax.jit(_counted(loop.prefill), static_argnums=(0, 2, 3))
decode_program = jax.jit(_counted(loop.decode), static_argnums=(0, 2, 3), donate_argnums=4)
passes_program = jax.jit(_counted(loop.decode_passes), static_argnums=(0, 2, 3), donate_argnums=4)

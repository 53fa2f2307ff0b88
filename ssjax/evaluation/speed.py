"""Several ways to decode the same prompts, timed in turn and compared with the first of them.

Batch by batch, every way decodes the same prompts before the next batch begins, so that a slow
moment of the machine meets all; in an order drawn anew for each batch, since whoever follows a
large tree may find the processor's caches cold. One batch of every prompt bucket runs before the
clock starts. Intervals are 95 % bootstrap intervals over batches: batches are drawn again with
replacement, the same ones for both sides of a ratio.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ssjax.decoding.completion import Completion, check_finite
from ssjax.decoding.decoder import BatchTiming, Decoder
from ssjax.decoding.drafters import Way
from ssjax.decoding.request import Request
from ssjax.metrics.bootstrap import interval


@dataclasses.dataclass(frozen=True)
class Entry:
    """A way to decode and the decoder that can. Entries that are compared have the same target."""

    decoder: Decoder
    way: Way


@dataclasses.dataclass(frozen=True)
class TimedBatch:
    """What one way made of one batch."""

    completions: tuple[Completion, ...]
    timing: BatchTiming

    @property
    def num_tokens(self) -> int:
        """New tokens, those of the prefill included."""
        return sum(len(completion.tokens) for completion in self.completions)

    @property
    def passes(self) -> int:
        """Of the batch: as many as its longest row needed."""
        return max((completion.calls for completion in self.completions), default=0)

    @property
    def seconds(self) -> float:
        return self.timing.prefill + self.timing.decode


class Kept(Protocol):
    """Batches that outlive the process, see `kept_batches`."""

    def of_ways(self, count: int) -> list[list[TimedBatch]]:
        """For each of so many ways, the batches that are done."""

    def check(self) -> None:
        """May stop, by an exception."""

    def append(self, batch: Sequence[TimedBatch]) -> None:
        """Keeps a batch, as each way decoded it; may stop, by an exception."""


def time_ways(
    entries: Sequence[Entry],
    request: Request,
    *,
    on_batch: Callable[[int], None] = lambda _: None,
    kept: Kept | None = None,
) -> list[list[TimedBatch]]:
    """Decodes all prompts in every way; for each entry its batches, in the order of the prompts.

    Args:
      entries: at least one.
      request: what is asked of all; its seed, one for all prompts, also orders the entries.
      on_batch: called with the number of prompts done so far.
      kept: has what was done before, and is told of what is done now; it may stop all.

    Raises:
      UserError: the model's output for a prompt is not finite, so that there is nothing to compare.
    """
    results = kept.of_ways(len(entries)) if kept else [[] for _ in entries]
    done = sum(len(batch.completions) for batch in results[0])
    rest = _without_first(request, done)
    _compile(entries, rest)
    if kept:
        kept.check()
    running = [entry.decoder.run_batches(rest, entry.way) for entry in entries]
    order = np.random.default_rng(request.seed)
    for _ in results[0]:
        order.permutation(len(entries))
    while done < len(request.prompts):
        for index in order.permutation(len(entries)):
            completions, timing = next(running[index])
            for number, completion in enumerate(completions, start=done + 1):
                check_finite(completion, number)
            results[index].append(TimedBatch(tuple(completions), timing))
        done += len(results[0][-1].completions)
        on_batch(done)
        if kept:
            kept.append([batches[-1] for batches in results])
    return results


def _without_first(request: Request, count: int) -> Request:
    """The request for the prompts after the first ones, with their limits, seeds and numbers."""
    if not count:
        return request
    parts = {
        "max_new_tokens": request.max_new_tokens,
        "seed": request.seed,
        "numbers": range(len(request.prompts)) if request.numbers is None else request.numbers,
    }
    cut = {k: v if isinstance(v, int | np.integer) else v[count:] for k, v in parts.items()}
    return dataclasses.replace(request, prompts=request.prompts[count:], **cut)


def _compile(entries: Sequence[Entry], request: Request) -> None:
    """Decodes a batch of every prompt bucket in every way, so that the clock meets no compiler."""
    for batch in entries[0].decoder.one_batch_per_bucket(request.prompts, request.batch_size):
        for entry in entries:
            asked = dataclasses.replace(request, prompts=batch, numbers=None)
            entry.decoder.generate(asked, entry.way)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_of_sums(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """sum(numerator) / sum(denominator), one entry of each per batch, resampled in pairs."""

    def ratio(sums):
        return float(sums[0] / max(sums[1], 1e-12))

    pairs = np.stack([np.asarray(numerator, float), np.asarray(denominator, float)], axis=1)
    return Estimate(ratio(pairs.sum(axis=0)), *interval(pairs, ratio))


def tokens_per_second(batches: Sequence[TimedBatch]) -> Estimate:
    """New tokens over seconds, prefill included in both."""
    return ratio_of_sums([b.num_tokens for b in batches], [b.seconds for b in batches])


def speedup(plain: Sequence[TimedBatch], fast: Sequence[TimedBatch]) -> Estimate:
    """Seconds of plain decoding over seconds of the other way, prefill included."""
    return ratio_of_sums([b.seconds for b in plain], [b.seconds for b in fast])

"""The fastest way to decode on this device: what drafts are accepted, and what passes cost.

    tokens per second = rows * predicted tokens per call / seconds per pass

for every candidate: trees of several sizes, best-first and static, with several numbers of
streams, in both execution orders, and plain decoding. Tokens per call are those of greedy
decoding of the prompts, exactly (see `replay`); seconds are measured (see `pass_time`). Prefill
is the same for all and left out. Rows of a batch are taken to be busy all the time.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssjax.decoding.completion import check_finite
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, Drafter, PlainDrafter, StaticDrafter, Way
from ssjax.decoding.likeliest_tree import likeliest_static_tree
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.ways import (
    FILE,
    Situation,
    describe,
    drafter_to_dict,
    read_entries,
    way_to_dict,
)
from ssjax.errors import UserError
from ssjax.evaluation.pass_time import PassShape, seconds_per_pass
from ssjax.evaluation.replay import acceptance_table, predict, replay
from ssjax.files.writing import write_atomic
from ssjax.models.transformer import Transformer

MARGIN = 0.03  # of tokens per second: drafts that gain less are not worth their memory
NUM_RANKS = 16
GAIN = 0.01  # of tokens per call: a larger tree that promises less is not timed
_PLAIN_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to decode, predicted and measured."""

    way: Way
    tokens_per_call: float  # of a row
    seconds_per_pass: float  # of the batch
    batch_size: int

    @property
    def is_plain(self) -> bool:
        return self.way.drafter.num_nodes == 1

    @property
    def tokens_per_second(self) -> float:
        return self.batch_size * self.tokens_per_call / self.seconds_per_pass


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Of one batch size."""

    batch_size: int
    candidates: tuple[Candidate, ...]  # plain decoding first

    @property
    def plain(self) -> Candidate:
        return self.candidates[0]

    @property
    def best_draft(self) -> Candidate:
        """The fastest that drafts; among equals the one with the fewest nodes, then the first."""
        drafting = [candidate for candidate in self.candidates if not candidate.is_plain]
        return max(drafting, key=lambda c: (c.tokens_per_second, -c.way.drafter.num_nodes))

    @property
    def chosen(self) -> Candidate:
        """The best draft if it beats plain decoding by more than the margin, else plain."""
        needed = (1 + MARGIN) * self.plain.tokens_per_second
        return self.best_draft if self.best_draft.tokens_per_second > needed else self.plain


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """What drafts do on some prompts, whatever the device."""

    table: np.ndarray  # [J, K] float64, shares by stream and rank
    tokens_per_call: dict[Drafter, float]
    prompt_length: int  # tokens, the median
    num_prompts: int


def require_streams(model: Transformer, name: str) -> None:
    """Raises: UserError, if the model of this name has none."""
    if model.streams.num_streams == 0:
        raise UserError(f"{name} has no streams: it decodes plainly, with nothing to calibrate")


def measure_acceptance(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    node_counts: Sequence[int],
    max_new_tokens: int,
) -> Acceptance:
    """Decodes prompts plainly and greedily, and predicts every candidate on the outputs.

    Args:
      decoder: a model with streams.
      prompts: ids.
      node_counts: budgets of draft nodes.
      max_new_tokens: of each output.

    Raises:
      UserError: outputs too short to need a pass, or not finite.
    """
    batch_size = min(_PLAIN_BATCH, len(prompts))
    request = Request(prompts, max_new_tokens, Sampling(), seed=0, batch_size=batch_size)
    completions = decoder.generate(request, Way(PlainDrafter(), deferred=True))
    for number, completion in enumerate(completions, start=1):
        check_finite(completion, number)
    outputs = [completion.tokens for completion in completions]
    if max(map(len, outputs)) < 2:
        raise UserError(
            "all outputs of these prompts end with their first token, so there is nothing to "
            "draft; raise decode.max_new_tokens or train longer"
        )
    num_ranks = min(NUM_RANKS, decoder.model.config.vocab_size)
    table = acceptance_table(replay(decoder, prompts, outputs, ()), num_ranks)
    drafters = candidate_drafters(table, node_counts)
    traces = replay(decoder, prompts, outputs, drafters)
    predicted = {d: predict(traces, i).tokens_per_call for i, d in enumerate(drafters)}
    length = round(statistics.median(map(len, prompts)))
    return Acceptance(table, predicted, length, len(prompts))


def calibrate(
    decoder: Decoder,
    acceptance: Acceptance,
    *,
    batch_size: int,
    max_new_tokens: int,
    repeats: int = 9,
    on_compiled: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Times every candidate that may be the fastest.

    Args:
      decoder, acceptance: the same model.
      batch_size: rows of a pass.
      max_new_tokens: as in decoding; part of the size of the cache.
      repeats, on_compiled: as in `seconds_per_pass`.
    """
    ways = candidate_ways(decoder.model, worth_timing(acceptance.tokens_per_call))
    shape = PassShape(batch_size, acceptance.prompt_length, max_new_tokens)
    seconds = seconds_per_pass(decoder, ways, shape, repeats=repeats, on_compiled=on_compiled)
    tokens = {PlainDrafter(): 1.0} | acceptance.tokens_per_call
    candidates = tuple(
        Candidate(way, tokens[way.drafter], time, batch_size)
        for way, time in zip(ways, seconds, strict=True)
    )
    return Calibration(batch_size, candidates)


def candidate_drafters(table: np.ndarray, node_counts: Sequence[int]) -> list[Drafter]:
    """Trees of these sizes; best-first with 1, 2, 4, ... and all streams.

    Args:
      table: [J, K], acceptance by stream and rank.
      node_counts: budgets of draft nodes.
    """
    num_streams = len(table)
    used = [2**i for i in range(num_streams.bit_length()) if 2**i < num_streams] + [num_streams]
    # A tree of few nodes cannot be deeper than it has nodes.
    best_first = [BestFirstDrafter(n, j) for n in node_counts for j in used if j <= n]
    # Fewer nodes than asked for where no others were ever accepted: equal trees once.
    trees = {likeliest_static_tree(table, n): None for n in node_counts}
    static = [StaticDrafter(tree, tree.max_depth) for tree in trees if tree.num_nodes > 1]
    return best_first + static


def worth_timing(tokens_per_call: Mapping[Drafter, float]) -> list[Drafter]:
    """The drafters that need not be slower for nothing; the others are not compiled.

    Taken to be no slower than a drafter: one with no more nodes and no more streams, of the same
    kind or static, since a static tree takes less work to write.
    """
    kept: list[Drafter] = []

    def size(drafter):
        return drafter.num_nodes, drafter.num_streams, not isinstance(drafter, StaticDrafter)

    def no_slower(a, b):
        fits = a.num_nodes <= b.num_nodes and a.num_streams <= b.num_streams
        return fits and (isinstance(a, StaticDrafter) or type(a) is type(b))

    for drafter in sorted(tokens_per_call, key=size):
        rivals = [tokens_per_call[other] for other in kept if no_slower(other, drafter)]
        if tokens_per_call[drafter] > (1 + GAIN) * max(rivals, default=0.0):
            kept.append(drafter)
    return kept


def candidate_ways(model: Transformer, drafters: Sequence[Drafter]) -> list[Way]:
    """Plain decoding first, then every drafter in every execution order that the model has."""
    orders = model.streams.orders
    ways = [Way(drafter, deferred) for drafter in drafters for deferred in orders]
    return [Way(PlainDrafter(), orders[0]), *ways]


def store(directory: Path, entries: Sequence[dict[str, Any]]) -> Path:
    """Adds entries to the file of a run, in place of those with the same keys.

    A file that cannot be read as one is replaced.
    """
    path = directory / FILE
    try:
        kept = {_key(entry): entry for entry in read_entries(path)}
    except UserError:
        kept = {}
    kept |= {_key(entry): entry for entry in entries}
    ordered = [kept[key] for key in sorted(kept)]
    write_atomic(path, json.dumps({"calibrations": ordered}, indent=1) + "\n")
    return path


def _key(entry):
    names = [field.name for field in dataclasses.fields(Situation)]
    return tuple(entry[name] for name in (*names, "batch_size"))


def entry_of(situation: Situation, acceptance: Acceptance, calibration: Calibration) -> dict:
    """Plain values of one calibration, as the file holds them."""
    return {
        **dataclasses.asdict(situation),
        "batch_size": calibration.batch_size,
        "summary": summary(calibration),
        "prompts": acceptance.num_prompts,
        "prompt_length": acceptance.prompt_length,
        "acceptance": acceptance.table.tolist(),
        "predicted": [
            {"drafter": drafter_to_dict(drafter), "tokens_per_call": tokens}
            for drafter, tokens in acceptance.tokens_per_call.items()
        ],
        "chosen": _candidate_values(calibration.chosen),
        "candidates": [_candidate_values(candidate) for candidate in calibration.candidates],
    }


def summary(calibration: Calibration) -> str:
    """One line: what was chosen, and by how much."""
    chosen, plain, draft = calibration.chosen, calibration.plain, calibration.best_draft
    ratio = draft.tokens_per_second / plain.tokens_per_second
    at = f"at batch size {calibration.batch_size}"
    if chosen.is_plain:
        return (
            f"plain decoding {at}: no draft pays here (the best, {describe(draft.way)}, would be "
            f"{ratio:.2f} times as fast)"
        )
    return (
        f"{describe(chosen.way)} {at}: {chosen.tokens_per_call:.2f} tokens per call, "
        f"{ratio:.2f} times as fast as plain decoding"
    )


def _candidate_values(candidate: Candidate) -> dict[str, Any]:
    return {
        **way_to_dict(candidate.way),
        "tokens_per_call": candidate.tokens_per_call,
        "seconds_per_pass": candidate.seconds_per_pass,
        "tokens_per_second": candidate.tokens_per_second,
    }

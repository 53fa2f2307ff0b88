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
from ssjax.evaluation.reliability import Chances, measure_chances
from ssjax.evaluation.replay import Prediction, acceptance_table, predict, replay
from ssjax.files.writing import write_atomic
from ssjax.models.transformer import Transformer

MARGIN = 0.03  # of tokens per second: drafts that gain less are not worth their memory
NUM_RANKS = 16
GAIN = 0.01  # of tokens per call: a larger tree that promises less is not timed
# Chances below which a node is not drafted, each a candidate. Were rows of one price, the best one
# would be the tokens per second of decoding times what a row costs.
MIN_NODE_CHANCES = (0.05, 0.1, 0.2, 0.4)
_NARROWED = 2  # drafters that leave unlikely nodes out which are timed: the most promising
_PLAIN_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to decode, predicted and measured."""

    way: Way
    tokens_per_call: float  # of a row
    seconds_per_pass: float  # of the batch; the mean, where passes have several widths
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
    predicted: dict[Drafter, Prediction]
    chances: Chances
    prompt_length: int  # tokens, the median
    num_prompts: int

    @property
    def tokens_per_call(self) -> dict[Drafter, float]:
        """Of every drafter that was predicted."""
        return {drafter: each.tokens_per_call for drafter, each in self.predicted.items()}


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
    traces = replay(decoder, prompts, outputs, ())
    table = acceptance_table(traces, num_ranks)
    whole = BestFirstDrafter(max(node_counts), len(table))
    chances = measure_chances(decoder, prompts, outputs, traces, whole)
    drafters = candidate_drafters(table, node_counts, chances.used)
    traces = replay(decoder, prompts, outputs, drafters)
    predicted = {d: predict(traces, i) for i, d in enumerate(drafters)}
    length = round(statistics.median(map(len, prompts)))
    return Acceptance(table, predicted, chances, length, len(prompts))


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
    tokens = acceptance.tokens_per_call
    whole = {drafter: tokens[drafter] for drafter in tokens if len(drafter.widths) == 1}
    ways = candidate_ways(decoder.model, worth_timing(whole))
    shape = PassShape(batch_size, acceptance.prompt_length, max_new_tokens)
    timing = dict(repeats=repeats, on_compiled=on_compiled)
    seconds = seconds_per_pass(decoder, ways, shape, **timing)
    tokens = {PlainDrafter(): 1.0} | tokens
    candidates = [
        Candidate(way, tokens[way.drafter], time, batch_size)
        for way, time in zip(ways, seconds, strict=True)
    ]
    narrowed = most_promising(acceptance, candidates)
    each = [(way, width) for way in narrowed for width in way.drafter.widths]
    # Plain decoding once more, so that a faster or slower minute of the machine does not count.
    again = [ways[0], *(way for way, _ in each)]
    first, *seconds = (
        seconds_per_pass(decoder, again, shape, rows=[1, *(rows for _, rows in each)], **timing)
        if each
        else [1.0]
    )
    scale = candidates[0].seconds_per_pass / first
    times = {key: scale * time for key, time in zip(each, seconds, strict=True)}
    for way in narrowed:
        own = [times[way, width] for width in way.drafter.widths]
        mean = mean_seconds(acceptance.predicted[way.drafter], way.drafter, own, batch_size)
        candidates.append(Candidate(way, tokens[way.drafter], mean, batch_size))
    return Calibration(batch_size, tuple(candidates))


def mean_seconds(
    prediction: Prediction, drafter: Drafter, seconds: Sequence[float], batch_size: int
) -> float:
    """Mean seconds of a pass, which is as wide as the row of the batch that needs most.

    Args:
      prediction: of the drafter; rows of a batch are taken not to know each other.
      drafter: with some widths.
      seconds: of a pass of each width.
      batch_size: rows of a pass.
    """
    needed = np.array(prediction.rows)
    fits = np.array([(needed <= width).mean() for width in drafter.widths]) ** batch_size
    return float(np.diff(fits, prepend=0.0) @ np.array(seconds))


def most_promising(acceptance: Acceptance, timed: Sequence[Candidate]) -> list[Way]:
    """Ways whose passes have several widths that seem the fastest, by passes of other drafters.

    A pass of some width is taken to cost what a draft of as many rows does in the same order.

    Args:
      acceptance: predictions.
      timed: candidates of one width, plain decoding first.
    """
    found = []
    for deferred in dict.fromkeys(candidate.way.deferred for candidate in timed[1:]):
        same = [timed[0], *(c for c in timed[1:] if c.way.deferred == deferred)]
        rows = sorted({c.way.drafter.num_nodes for c in same})
        cost = [min(c.seconds_per_pass for c in same if c.way.drafter.num_nodes == r) for r in rows]
        for drafter, prediction in acceptance.predicted.items():
            if len(drafter.widths) > 1:
                own = np.interp(drafter.widths, rows, cost)
                mean = mean_seconds(prediction, drafter, own, timed[0].batch_size)
                found.append((prediction.tokens_per_call / mean, Way(drafter, deferred)))
    found.sort(key=lambda entry: -entry[0])
    return [way for _, way in found[:_NARROWED]]


def candidate_drafters(
    table: np.ndarray, node_counts: Sequence[int], temperatures: tuple[float, ...] = ()
) -> list[Drafter]:
    """Trees of these sizes; best-first with 1, 2, 4, ... and all streams.

    Those with all streams also without nodes of less than some chance, `MIN_NODE_CHANCES`.

    Args:
      table: [J, K], acceptance by stream and rank.
      node_counts: budgets of draft nodes.
      temperatures: by stream, for best-first trees; empty: all 1.
    """
    num_streams = len(table)
    used = [2**i for i in range(num_streams.bit_length()) if 2**i < num_streams] + [num_streams]
    # A tree of few nodes cannot be deeper than it has nodes.
    best_first = [
        BestFirstDrafter(n, j, temperatures=temperatures[:j])
        for n in node_counts
        for j in used
        if j <= n
    ]
    likely = [
        dataclasses.replace(drafter, min_node_chance=chance)
        for drafter in best_first
        if drafter.num_streams == num_streams
        for chance in MIN_NODE_CHANCES
    ]
    # Fewer nodes than asked for where no others were ever accepted: equal trees once.
    trees = {likeliest_static_tree(table, n): None for n in node_counts}
    static = [StaticDrafter(tree, tree.max_depth) for tree in trees if tree.num_nodes > 1]
    return best_first + static + likely


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
        "chances": _chances_values(acceptance.chances),
        "chosen": candidate_values(calibration.chosen),
        "candidates": [candidate_values(candidate) for candidate in calibration.candidates],
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


def _chances_values(chances: Chances) -> dict[str, Any]:
    return {
        "temperatures": list(chances.temperatures),
        "used": bool(chances.used),
        "gain": chances.gain,
        "tokens_per_call": list(chances.tokens_per_call),
        "plain": {"error": chances.plain.error, **dataclasses.asdict(chances.plain)},
        "fitted": {"error": chances.fitted.error, **dataclasses.asdict(chances.fitted)},
    }


def candidate_values(candidate: Candidate) -> dict[str, Any]:
    """Plain values of a candidate, as the file holds them."""
    return {
        **way_to_dict(candidate.way),
        "tokens_per_call": candidate.tokens_per_call,
        "seconds_per_pass": candidate.seconds_per_pass,
        "tokens_per_second": candidate.tokens_per_second,
    }

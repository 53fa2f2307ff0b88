"""The tokens that the streams of a run can draft: the most frequent ones of its targets.

The product with the head is most of what a stream costs, and a task uses few of the tokens: of
SmolLM2-135M's 49,152 the targets of E2E NLG have some two thousand. A draft of the others is hardly
ever kept, and no output can change: the main stream keeps the whole vocabulary. The ids are part
of the config that a run writes when it begins, and go wherever its model goes.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ssjax.config import Config
from ssjax.data import pipeline
from ssjax.data.choice import open_split
from ssjax.data.tasks import Record, Task, get_task
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.weights.base import read_config

_COUNTED_RECORDS = 20_000  # at most, spread over the training split


def kept(config: Config, workdir: Path) -> Config:
    """The config with the draft vocabulary that its run has found before, if it is that large."""
    streams = config.streams
    if streams.draft_tokens or not streams.draft_vocab_size:
        return config
    if not (workdir / "config.json").exists():
        return config
    before = read_config(workdir).streams
    if before.draft_vocab_size != streams.draft_vocab_size:
        return config
    return _with_tokens(config, before.draft_tokens)


def found(config: Config, tokenizer: Tokenizer, say: Callable[[str], None]) -> Config:
    """The config with the draft vocabulary of its training split, unless it has one or needs none.

    Args:
      config: resolved.
      tokenizer: of the run.
      say: is told how much of the targets it covers.
    """
    streams = config.streams
    if streams.draft_tokens or not streams.draft_vocab_size:
        return config
    source, task = open_split(config, "train"), get_task(config.data.task)
    counts = count_tokens(source, task, tokenizer, config.data.max_target_length)
    tokens = most_frequent(*counts, streams.draft_vocab_size)
    of_targets = counts[0]
    covered = sum(of_targets[token] for token in tokens) / max(of_targets.total(), 1)
    say(f"draft vocabulary: {len(tokens):,} tokens, {covered:.2%} of those in training targets")
    return _with_tokens(config, tokens)


def count_tokens(
    source: Sequence[Record], task: Task, tokenizer: Tokenizer, max_target_length: int
) -> tuple[Counter, Counter]:
    """How often tokens stand in targets, and in prompts, of up to 20,000 records."""
    of_targets, of_prompts = Counter(), Counter()
    for index in pipeline.spread(len(source), _COUNTED_RECORDS):
        record = source[index]
        of_targets.update(task.target_ids(record, tokenizer)[:max_target_length])
        of_prompts.update(task.prompt_ids(record, tokenizer))
    return of_targets, of_prompts


def most_frequent(of_targets: Counter, of_prompts: Counter, size: int) -> tuple[int, ...]:
    """At most `size` tokens, rising: those of targets first, the more frequent, then of prompts.

    Names that no training target has may stand in the prompts, and so in the answers to come.
    """
    ranked = sorted(
        of_targets.keys() | of_prompts.keys(),
        key=lambda token: (-of_targets[token], -of_prompts[token], token),
    )
    return tuple(sorted(ranked[:size]))


def _with_tokens(config: Config, tokens: tuple[int, ...]) -> Config:
    streams = dataclasses.replace(config.streams, draft_tokens=tokens)
    return dataclasses.replace(config, streams=streams)

"""What a model is asked: which prompts, at which temperature, in which order."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from ssjax.config import Config
from ssjax.data import pipeline
from ssjax.data.records import RecordSource
from ssjax.data.splits import SPLITS
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import Tokenizer
from ssjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is wanted.

    Raises:
      UserError: a value that cannot work, by its flag.
    """

    config: Config  # whose task, data and distribution of tokens are used
    temperatures: tuple[float, ...]  # each record gets one; given twice, it comes twice as often
    num_records: int  # of each split that is answered, evenly spread over it; 0: all
    splits: tuple[str, ...]  # that are answered; the others are kept as they are
    seed: int  # of temperatures and samples

    def __post_init__(self):
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(
                    f"--splits: unknown split {split!r}; give some of {','.join(SPLITS)}"
                )
        for value in self.temperatures:
            if not (value == 0 or 1e-4 <= value < float("inf")):
                raise UserError(f"--temperatures: {value} must be 0 (greedy) or at least 0.0001")
        if not self.splits or not self.temperatures:
            raise UserError("--splits and --temperatures need at least one value each")

    def seed_of(self, split: str) -> int:
        """The seed of a split's samples; a sample depends on it and on the record's place alone."""
        return int(self._random(split).integers(2**31))

    def temperature_of(self, split: str, place: int) -> float:
        """That of a record, whatever other records there are."""
        return self.temperatures[self._random(split, place).integers(len(self.temperatures))]

    def _random(self, split: str, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(split), *more])


@dataclasses.dataclass(frozen=True)
class Job:
    """One prompt."""

    place: int  # of its record in the split
    temperature: float
    prompt_ids: tuple[int, ...]  # as training forms and cuts them


@dataclasses.dataclass(frozen=True)
class Jobs:
    """The prompts of a split, in the order in which they are answered."""

    split: str
    ordered: tuple[Job, ...]  # of one temperature together, short ones first
    num_repeated: int  # records left out: greedy, with a prompt that came before

    @property
    def digest(self) -> str:
        """Of all that is asked."""
        values = [[job.place, job.temperature, job.prompt_ids] for job in self.ordered]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def batches(self, done: int, size: int) -> Iterator[Sequence[Job]]:
        """What is left after the first `done` jobs, up to `size` of one temperature at a time."""
        while done < len(self.ordered):
            batch = self.ordered[done : done + size]
            batch = [job for job in batch if job.temperature == batch[0].temperature]
            yield batch
            done += len(batch)


def make_jobs(source: RecordSource, tokenizer: Tokenizer, asked: Asked, split: str) -> Jobs:
    """The prompts of a split.

    Args:
      source: its records.
      tokenizer: of the model that answers.
      asked: what is wanted.
      split: which one it is.
    """
    task, data = get_task(asked.config.data.task), asked.config.data
    jobs, seen, repeated = [], set(), 0
    for place in pipeline.spread(len(source), asked.num_records or len(source)):
        prompt = pipeline.encode_prompt(source[place], task, tokenizer, data.max_prompt_length)
        job = Job(place, asked.temperature_of(split, place), tuple(prompt))
        if job.temperature == 0 and job.prompt_ids in seen:
            repeated += 1
            continue
        if job.temperature == 0:
            seen.add(job.prompt_ids)
        jobs.append(job)
    # Prompts of like length are padded little, and answers of one temperature are one program.
    jobs.sort(key=lambda job: (job.temperature, len(job.prompt_ids), job.place))
    return Jobs(split, tuple(jobs), repeated)

"""A model's own answers, batch by batch, each as a text of which training makes the same tokens."""

import dataclasses
from collections.abc import Iterator, Sequence

from ssjax.data import pipeline
from ssjax.data.records import RecordSource
from ssjax.data.tasks import CONTINUATION, Record, get_task
from ssjax.decoding.completion import Completion, check_finite
from ssjax.decoding.drafters import Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import make_sampling
from ssjax.distillation.parts import OwnAnswer
from ssjax.distillation.prompts import Asked, Job, Jobs
from ssjax.run import Run

EMPTY = "empty"
OTHER_TOKENS = "other tokens"


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Who answers, and what is asked of it."""

    run: Run
    way: Way  # in which it drafts, which changes no answer
    asked: Asked
    batch_size: int

    def answers(self, source: RecordSource, jobs: Jobs, done: int) -> Iterator[Sequence[OwnAnswer]]:
        """Answers the jobs after the first `done`, a batch at a time.

        Args:
          source: the records of the split.
          jobs: its prompts.
          done: how many have their answers already.

        Raises:
          UserError: the model's output is not finite, or the answers need more room than there is.
        """
        for batch in jobs.batches(done, self.batch_size):
            completions = self.run.decoder.generate(self._request(batch, jobs.split), self.way)
            for job, completion in zip(batch, completions, strict=True):
                check_finite(completion, job.place + 1)
            yield [
                self._answer(job, completion, source[job.place])
                for job, completion in zip(batch, completions, strict=True)
            ]

    def _request(self, batch: Sequence[Job], split: str) -> Request:
        config = self.asked.config
        return Request(
            prompts=[job.prompt_ids for job in batch],
            max_new_tokens=config.data.max_target_length,
            sampling=dataclasses.replace(
                make_sampling(config.decode), temperature=batch[0].temperature
            ),
            seed=self.asked.seed_of(split),
            batch_size=self.batch_size,  # a short batch is filled up: no other program
            numbers=[job.place for job in batch],
        )

    def _answer(self, job: Job, completion: Completion, record: Record) -> OwnAnswer:
        text = self.run.tokenizer.decode_continuation(completion.tokens)
        answer = OwnAnswer(
            job.place, text, len(completion.tokens), cut=completion.finish == "length"
        )
        if not text.strip():
            return dataclasses.replace(answer, left_out=EMPTY)
        if self._learned(record, text) != self._decoded(completion):
            return dataclasses.replace(answer, left_out=OTHER_TOKENS)
        return answer

    def _learned(self, record: Record, text: str) -> list[int]:
        """The target that training makes of a text."""
        data, tokenizer = self.asked.config.data, self.run.tokenizer
        limits = data.max_prompt_length, data.max_target_length
        record = {**record, CONTINUATION: text}
        return pipeline.encode_example(record, get_task(data.task), tokenizer, *limits)[1]

    def _decoded(self, completion: Completion) -> list[int]:
        """The tokens that were decoded; where several end a text, the one that training teaches."""
        tokens = list(completion.tokens)
        return [*tokens[:-1], self.run.tokenizer.eos_id] if completion.finish == "eos" else tokens

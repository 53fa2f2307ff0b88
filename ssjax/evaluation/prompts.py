"""The prompts that are decoded to measure a run: of a split of its data, or of a question file."""

import dataclasses

from ssjax.config import Config
from ssjax.data import pipeline
from ssjax.data.choice import open_split
from ssjax.data.pipeline import Example
from ssjax.data.prompt_files import read_questions
from ssjax.data.tasks import Metric
from ssjax.run import Run


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is decoded."""

    source: str  # in words
    ids: tuple[tuple[int, ...], ...]
    examples: tuple[Example, ...]  # empty: quality is not scored


def examples_of(run: Run, split: str, limit: int) -> list[Example]:
    """The first records of a split of the run's data; none where the split has none.

    Args:
      run: whose task, tokenizer and lengths they are encoded with.
      split: "train", "validation" or "test".
      limit: examples, at most; 0: all.
    """
    length = run.config.data.max_prompt_length
    return pipeline.decode_examples(
        open_split(run.config, split), run.task, run.tokenizer, length, limit
    )


def eval_changes(config: Config) -> dict[str, int]:
    """The fields of `DecodeConfig` in whose place the eval group has others."""
    return {"batch_size": config.eval.batch_size} if config.eval.batch_size else {}


def metrics_of(run: Run) -> tuple[Metric, ...]:
    """What outputs of a run are scored by, the main one first."""
    return run.config.eval.metrics or run.task.metrics


def with_data(run: Run, path: str | None) -> Run:
    """The run with its data at another path; None: where it was in training."""
    if path is None:
        return run
    data = dataclasses.replace(run.config.data, path=path)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))


def of_split(run: Run, split: str, limit: int) -> Prompts:
    """Prompts of a split, with what scores their outputs; arguments as of `examples_of`."""
    examples = examples_of(run, split, limit)
    ids = tuple(tuple(example.prompt_ids) for example in examples)
    return Prompts(f"{run.config.data.task} {split}", ids, tuple(examples))


def of_questions(run: Run, path: str, limit: int) -> Prompts:
    """First turns of a Spec-Bench or MT-bench question file.

    Args:
      run: whose task and tokenizer they are encoded with.
      path: of the file.
      limit: questions, at most.

    Raises:
      UserError: not such a file; names the line.
    """
    texts = read_questions(path)[:limit]
    return Prompts(path, tuple(tuple(run.encode_prompt(text, raw=False)) for text in texts), ())

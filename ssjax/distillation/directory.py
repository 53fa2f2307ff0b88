"""The directory that distillation leaves, see `ssjax.data.distilled`; begun, continued, finished.

While it grows it holds distilled.json, which says so, and a file of answers a split. The splits
appear when all is answered, and at last distilled.json says that they are whole.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssjax.data.choice import data_digests, open_split
from ssjax.data.distilled import FILE, read_about
from ssjax.data.records import RecordSource
from ssjax.data.splits import SPLITS
from ssjax.data.tasks import CONTINUATION
from ssjax.decoding.sampling import make_sampling
from ssjax.distillation.answers import Answerer
from ssjax.distillation.display import shown
from ssjax.distillation.parts import OwnAnswer, Part
from ssjax.distillation.prompts import Asked, Jobs, make_jobs
from ssjax.errors import UserError
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import write_atomic, writing
from ssjax.messages import say
from ssjax.parallel import distributed
from ssjax.training import lock, trainer


def distill(answerer: Answerer, weights: str, target: Path) -> dict[str, Any]:
    """Writes the answers of a model, or goes on where that was stopped.

    To be called by all processes of a run; the first one writes.

    Args:
      answerer: the model, and what it is asked.
      weights: their identity, see `ssjax.weights.identity`.
      target: the directory; new, empty, or begun with the same settings.

    Returns:
      What distilled.json holds in the end; in the first process alone.

    Raises:
      UserError: the directory holds something else, the data cannot be read, or no answer can be
        trained on.
    """
    asked, path = answerer.asked, answerer.asked.config.data.path
    if read_about(path) is not None:
        raise UserError(f"{path} was distilled itself; give the data that it was made from")
    distributed.first(lambda: _check_target(target))
    with trainer.held(target, "--target"):
        sources = {split: open_split(asked.config, split) for split in SPLITS}
        jobs = [
            make_jobs(sources[split], answerer.run.tokenizer, asked, split)
            for split in SPLITS
            if split in asked.splits
        ]
        about = {
            "finished": False,
            "base": str(answerer.run.workdir),
            "step": answerer.run.step,
            "asked": _settings(asked, weights, jobs),
        }
        known = distributed.first(lambda: _begin(target, about))
        if distributed.gather("finished" if known else "")[0]:
            say(f"{target} is finished already")
            return known or {}
        parts = {
            each.split: _answered(answerer, sources[each.split], each, target) for each in jobs
        }
        return distributed.first(lambda: _finish(target, sources, jobs, parts, about)) or {}


def _check_target(target: Path) -> None:
    """Raises: UserError: there is something that is no beginning of ours."""
    with writing(target):
        if not target.exists() or (target / FILE).exists():
            return
        if not target.is_dir() or {path.name for path in target.iterdir()} - {lock.FILE}:
            raise UserError(f"{target} exists and is not empty; give another --target")


def _settings(asked: Asked, weights: str, jobs: Sequence[Jobs]) -> dict[str, Any]:
    """All that decides the answers, as plain values."""
    data = asked.config.data
    sampling = dataclasses.asdict(make_sampling(asked.config.decode))
    del sampling["temperature"]
    settings = {
        "weights": weights,
        "task": data.task,
        "data": data_digests(asked.config),
        "max_prompt_length": data.max_prompt_length,
        "max_target_length": data.max_target_length,
        "temperatures": asked.temperatures,
        "num_records": asked.num_records,
        "splits": [each.split for each in jobs],
        "seed": asked.seed,
        **sampling,
        "prompts": {each.split: each.digest for each in jobs},
    }
    return json.loads(json.dumps(settings))


def _begin(target: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Claims the directory; what its distilled.json says if all has been written before.

    Raises:
      UserError: it was begun with other settings; names the first.
    """
    file = target / FILE
    if not file.exists():
        write_atomic(file, to_json(about))
        return None
    here = read_json_object(file, "give another --target")
    if not isinstance(here.get("asked"), dict) or not isinstance(here.get("splits", {}), dict):
        raise UserError(f"{file}: not as it was written; give another --target")
    for key, value in about["asked"].items():
        if (known := here["asked"].get(key)) != value:
            raise UserError(
                f"{target} was begun with {key}={known!r:.80}, not {value!r:.80}; give another "
                "--target, or that value to go on"
            )
    return here if here.get("finished") and "splits" in here else None


def _answered(answerer: Answerer, source: RecordSource, jobs: Jobs, target: Path) -> Part | None:
    """Answers what is left of a split; the first process has the file of all answers."""
    part = distributed.first(lambda: Part(_part_file(target, jobs.split), jobs))
    done = int(distributed.gather(str(len(part.answers) if part else 0))[0])
    total, tokens = len(jobs.ordered), 0
    if done:
        say(f"{jobs.split}: going on after {done:,} of {total:,} answers")
    with shown(jobs.split, done, total) as show:
        for batch in answerer.answers(source, jobs, done):
            distributed.first(functools.partial(Part.append, part, batch))
            done, tokens = done + len(batch), tokens + sum(each.num_tokens for each in batch)
            show(done, tokens)
    return part


def _finish(
    target: Path,
    sources: Mapping[str, RecordSource],
    jobs: Sequence[Jobs],
    parts: Mapping[str, Part],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Writes the splits and says that they are whole; a kill at any line costs nothing."""
    counts = {each.split: _counts(each, parts[each.split].answers) for each in jobs}
    for split, count in counts.items():
        if not count["answers"]:
            raise UserError(
                f"no answer to the prompts of {split} can be trained on: left out "
                f"{count['left_out']}; another temperature or another base may help"
            )
    for split, source in sources.items():
        answers = parts[split].answers if split in parts else None
        lines = [json.dumps(record, ensure_ascii=False) for record in _records(source, answers)]
        write_atomic(target / f"{split}.jsonl", "\n".join(lines) + "\n")
    about = about | {"finished": True, "splits": counts}
    write_atomic(target / FILE, to_json(about))
    for split in parts:
        _part_file(target, split).unlink(missing_ok=True)
    return about


def _records(source: RecordSource, answers: Sequence[OwnAnswer] | None) -> Iterator[dict[str, Any]]:
    """The records of a split with what was answered, in the order of the source; None: nothing."""
    if answers is None:
        for record in source:
            yield {**record, CONTINUATION: ""}
        return
    for answer in sorted(answers, key=lambda answer: answer.place):
        if not answer.left_out:
            yield {**source[answer.place], CONTINUATION: answer.text}


def _counts(jobs: Jobs, answers: Sequence[OwnAnswer]) -> dict[str, Any]:
    """What became of the prompts of a split."""
    kept = [answer for answer in answers if not answer.left_out]
    temperatures = {job.place: job.temperature for job in jobs.ordered}
    left_out = Counter(answer.left_out for answer in answers if answer.left_out)
    if jobs.num_repeated:
        left_out["repeated"] = jobs.num_repeated
    return {
        "answers": len(kept),
        "tokens": sum(answer.num_tokens for answer in kept),
        "cut": sum(answer.cut for answer in kept),
        "by_temperature": dict(
            sorted(Counter(f"{temperatures[answer.place]:g}" for answer in kept).items())
        ),
        "left_out": dict(sorted(left_out.items())),
    }


def _part_file(target: Path, split: str) -> Path:
    return target / f"{split}.part"

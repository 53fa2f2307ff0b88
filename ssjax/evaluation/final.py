"""The evaluation that ends a training: what its config asks for, and where it was stopped."""

from collections.abc import Callable
from typing import Any

from ssjax.data.choice import split_names
from ssjax.evaluation import report, teacher_forcing
from ssjax.evaluation.kept_batches import KeptBatches
from ssjax.evaluation.prompts import eval_changes, examples_of
from ssjax.messages import say
from ssjax.run import Run

_KEPT = "evaluation.partial.jsonl"  # in the run directory


def evaluate(
    run: Run, requested: Callable[[], bool], write: Callable[[dict[str, Any]], None]
) -> dict[str, Any] | None:
    """Decodes what the eval group of a run says, and compares drafts on given text with its own.

    Args:
      run: at its end; to be called by all processes.
      requested: whether this process was asked to stop.
      write: puts the evaluation on disk, in the first process.

    Returns:
      What `report.evaluate` gives, with "teacher_forcing"; None where there is none, which is said.

    Raises:
      Stopped: what is decoded is kept, and the next call goes on from there.
      UserError: it cannot be decoded so.
    """
    settings = run.config.eval
    if why := _why_not(run):
        say(f"no evaluation: {why}")
        return None
    kept: list[KeptBatches] = []

    def keep(about):
        kept.append(KeptBatches(run.workdir / _KEPT, about, requested))
        return kept[0]

    # The settings of the config, so that evaluations of equal configs can be compared.
    evaluation = report.evaluate(
        run,
        settings.split,
        settings.max_records,
        calibration=False,
        keep=keep,
        **eval_changes(run.config),
    )
    texts = teacher_forcing.compare_texts(run, run.config.train.eval_prompts)
    if texts is not None:
        evaluation["teacher_forcing"] = texts
        for line in teacher_forcing.lines(texts):
            say(line)
    write(evaluation)
    kept[0].remove()
    return evaluation


def _why_not(run: Run) -> str:
    """Why there is nothing to evaluate; empty: there is."""
    settings, where = run.config.eval, run.config.data.path or "the generated sample"
    if not settings.enabled:
        return "eval.enabled is False"
    if settings.split not in split_names(run.config):
        return f"{where} has no {settings.split} split; eval.split=validation would take another"
    if not examples_of(run, settings.split, 1):
        return f"the {settings.split} split of {where} has no records"
    return ""

"""Trains a model, then compares plain and speculative decoding on held-out records.

    python -m ssjax.train --config experiments/dialogsum.py
    python -m ssjax.train --config experiments/dialogsum.py:small --config.data.path=DIR
    python -m ssjax.train --config FILE --config.optimizer.learning_rate=3e-4

    python -m ssjax.train --config FILE --config.mesh.fsdp=4 --config.mesh.tensor=2

A run lives in config.workdir. Ctrl-C or SIGTERM saves and exits with code 42; the same
command continues where the run was and ends with the same weights; so does the evaluation at
the end. A finished run is only evaluated again. On several hosts the same command runs on
each, see docs/launch.md: a signal to any of them stops all at the same step, and a run
continues on other hosts and meshes.
"""

from typing import Any

from ssjax import messages
from ssjax.cli import options, start
from ssjax.config import Config
from ssjax.data.tasks import get_task
from ssjax.errors import EXIT_RESUMABLE
from ssjax.evaluation import final, report, training_run
from ssjax.evaluation.kept_batches import Stopped
from ssjax.files import places
from ssjax.metrics.quality import require_packages
from ssjax.parallel import program_cache
from ssjax.run import open_run
from ssjax.training import trainer
from ssjax.training.interruption import Interruption

_EXPERIMENT = options.define_experiment_flags()
_JSON = options.define_output("json", "Also write the evaluation to this file.")
_DISTRIBUTED = options.define_distributed_flag()


def main() -> int:
    """Trains and evaluates the experiment of the command line; returns the exit code."""
    config = _EXPERIMENT.read()
    require_packages(config.eval.metrics or get_task(config.data.task).metrics)
    start.join(_DISTRIBUTED.value)
    program_cache.keep(config.compilation_cache)
    with trainer.held(places.of(config.workdir)):
        return _train_and_evaluate(config)


def _train_and_evaluate(config: Config) -> int:
    outcome = training_run.train(config)
    if not outcome.complete:
        step = outcome.trained.step
        messages.say(f"stopped at step {step}, saved; run the same command to continue")
        return EXIT_RESUMABLE
    with Interruption(messages.say, "stopping after this batch") as interruption:
        try:
            evaluation = final.evaluate(
                open_run(outcome.trained, outcome.mesh), lambda: interruption.requested, _write
            )
        except Stopped:
            messages.say("stopped in the evaluation, kept; run the same command to continue")
            return EXIT_RESUMABLE
    if evaluation is not None:
        report.show(evaluation)
    return 0


def _write(evaluation: dict[str, Any]) -> None:
    options.write_json(str(places.of(evaluation["workdir"]) / "evaluation.json"), evaluation)
    options.write_json(_JSON.value, evaluation)


if __name__ == "__main__":
    start.restart_with_huge_pages()
    start.run(main)

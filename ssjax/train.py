"""Trains a model, then compares plain and speculative decoding on held-out records.

    python -m ssjax.train --config experiments/dialogsum.py
    python -m ssjax.train --config experiments/dialogsum.py:small --config.data.path=DIR
    python -m ssjax.train --config FILE --config.optimizer.learning_rate=3e-4

    python -m ssjax.train --config FILE --config.mesh.fsdp=4 --config.mesh.tensor=2

A run lives in config.workdir. Ctrl-C or SIGTERM saves and exits with code 42; the same
command continues where the run was and ends with the same weights. A finished run is only
evaluated again. On several hosts the same command runs on each, see docs/launch.md: a signal
to any of them stops all at the same step, and a run continues on other hosts and meshes.
"""

from ssjax import messages
from ssjax.cli import options, start
from ssjax.data.tasks import get_task
from ssjax.errors import EXIT_RESUMABLE
from ssjax.evaluation import report, teacher_forcing, training_run
from ssjax.metrics.quality import require_packages
from ssjax.parallel import program_cache

_EXPERIMENT = options.define_experiment_flags()
_JSON = options.define_output("json", "Also write the evaluation to this file.")
_DISTRIBUTED = options.define_distributed_flag()


def main() -> int:
    """Trains and evaluates the experiment of the command line; returns the exit code."""
    config = _EXPERIMENT.read()
    require_packages(get_task(config.data.task).metrics)
    start.join(_DISTRIBUTED.value)
    program_cache.keep(config.compilation_cache)
    run, complete = training_run.train(config)
    if not complete:
        messages.say(f"stopped at step {run.step}, saved; run the same command to continue")
        return EXIT_RESUMABLE
    # The settings of the config, so that evaluations of equal configs can be compared.
    settings = run.config.eval
    evaluation = report.evaluate(run, settings.split, settings.max_records, calibration=False)
    texts = teacher_forcing.compare_texts(run, config.train.eval_prompts)
    if texts is not None:
        evaluation["teacher_forcing"] = texts
        for line in teacher_forcing.lines(texts):
            messages.say(line)
    options.write_json(str(run.workdir / "evaluation.json"), evaluation)
    options.write_json(_JSON.value, evaluation)
    report.show(evaluation)
    return 0


if __name__ == "__main__":
    start.restart_with_huge_pages()
    start.run(main)

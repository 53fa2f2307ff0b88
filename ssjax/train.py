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

from pathlib import Path

import jax
from absl import flags

from ssjax import cli, messages
from ssjax.config import Config
from ssjax.evaluation import report
from ssjax.files.writing import make_directory
from ssjax.parallel import distributed
from ssjax.run import open_run
from ssjax.training import interruption, trainer

_CONFIG = cli.define_experiment_flag()
_JSON = cli.define_output("json", "Also write the evaluation to this file.")
_DISTRIBUTED = distributed.define_flag()
flags.adopt_module_key_flags(cli)  # so that --help lists them


def main() -> int:
    """Runs the experiment of the command line; returns the exit code."""
    config = cli.experiment(_CONFIG)
    if config.compilation_cache:
        make_directory(config.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    distributed.initialize(_DISTRIBUTED.value)
    messages.speak(distributed.is_first())
    try:
        with trainer.held(Path(config.workdir)):
            return run(config)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        code = cli.EXIT_INTERRUPTED if interrupted else getattr(error, "exit_code", 1)
        interruption.end_within(10, code)
        raise


def run(config: Config) -> int:
    """Trains and evaluates; returns the exit code."""
    outcome = trainer.train(config)
    step = outcome.trained.step
    if not outcome.complete:
        messages.say(f"stopped at step {step}, saved; run the same command to continue")
        return cli.EXIT_RESUMABLE
    # The settings of the config, so that evaluations of equal configs can be compared.
    settings = outcome.trained.config.eval
    evaluation = report.evaluate(
        open_run(outcome.trained, outcome.mesh),
        settings.split,
        settings.max_records,
        calibration=False,
    )
    if distributed.is_first():
        cli.write_json(str(outcome.trained.directory / "evaluation.json"), evaluation)
        cli.write_json(_JSON.value, evaluation)
        report.show(evaluation)
    return 0


if __name__ == "__main__":
    cli.restart_with_huge_pages()
    cli.run(main)

"""A training that decodes at its validations, and the model that it leaves, opened."""

from collections.abc import Sequence
from pathlib import Path

from ssjax.config import Config
from ssjax.evaluation.decoded_validation import DecodedValidation
from ssjax.parallel import program_cache
from ssjax.run import Run, open_run
from ssjax.training import trainer
from ssjax.training.callbacks import Callback


def train(config: Config, callbacks: Sequence[Callback] = ()) -> tuple[Run, bool]:
    """Trains or continues the run of a config, whose directory is locked meanwhile.

    Args:
      config: of the run.
      callbacks: see `ssjax.train`.

    Returns:
      The model, on the devices that it was trained on, and whether the training is complete: False
      after a signal or a callback that asked to stop.

    Raises:
      UserError: as `trainer.train`, or another process trains there.
    """
    if config.compilation_cache:
        program_cache.keep(config.compilation_cache)
    with trainer.held(Path(config.workdir)):
        outcome = trainer.train(config, callbacks, decode_validation=DecodedValidation())
    return open_run(outcome.trained, outcome.mesh), outcome.complete

"""A training that decodes at its validations."""

from collections.abc import Sequence

from ssjax.config import Config
from ssjax.evaluation.decoded_validation import DecodedValidation
from ssjax.parallel import program_cache
from ssjax.training import trainer
from ssjax.training.callbacks import Callback
from ssjax.training.trainer import Outcome


def train(config: Config, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Trains or continues the run of a config, in a directory that is `trainer.held`.

    Args:
      config: of the run.
      callbacks: see `ssjax.train`.

    Raises:
      UserError: as `trainer.train`.
    """
    if config.compilation_cache:
        program_cache.keep(config.compilation_cache)
    return trainer.train(config, callbacks, decode_validation=DecodedValidation())

"""The validation of a training by what counts: prompts decoded with the weights of the moment.

Decoded as the finished run will be: by the real decoder, with the drafter, the node budget and the
batch size of the decode settings, on the mesh of that run (`partitioning.decode_mesh`). No
calibration is looked at. The programs are those of the evaluation at the end; weights are their
argument, so they are compiled at the first validation and never again.
"""

import math
from collections.abc import Sequence

from jax.sharding import Mesh

from ssjax.config.measured import is_decoded
from ssjax.data.pipeline import Example
from ssjax.decoding.completion import not_finite
from ssjax.decoding.drafters import Way
from ssjax.decoding.request import Request, make_request
from ssjax.decoding.room import enough_memory
from ssjax.errors import UserError
from ssjax.evaluation.comparison import Measurement
from ssjax.evaluation.prompts import eval_changes, metrics_of, of_split
from ssjax.messages import say, say_once
from ssjax.metrics.quality import score, shown_metrics
from ssjax.parallel import distributed
from ssjax.run import Run, open_run
from ssjax.training.decoded import Decoded
from ssjax.weights.load import Trained


class DecodedValidation:
    """Of one training: a `training.decoded.DecodeValidation`.

    The first `train.eval_prompts` prompts of the validation split are encoded, and a draft model is
    read, when it is first called. Nothing is decoded for a model that has neither streams nor
    Medusa heads, or where decode.drafter is plain: a pass then emits one token.
    """

    def __init__(self):
        self._off = False
        self._asked: tuple[Request, Way, tuple[Example, ...]] | None = None

    def __call__(self, trained: Trained, mesh: Mesh) -> Decoded | None:
        """Decodes; to be called by all processes.

        Args:
          trained: weights of the moment, which are only read.
          mesh: of the same devices, to decode on.

        Returns:
          None where there is nothing to measure: see above, no validation prompts, outputs that
          need no pass or are not finite. The latter is said.

        Raises:
          UserError: the prompts cannot be decoded so, and the best checkpoint is judged by them.
            Otherwise the line is said, once, and training goes on without.
        """
        config = trained.config
        batch_size = config.eval.batch_size or config.decode.batch_size
        if self._off or config.train.eval_prompts == 0 or config.streams.num_ahead == 0:
            return None
        try:
            # Opening casts, folds and unrolls the weights beside those that are trained.
            with enough_memory(batch_size, config.decode.prompt_buckets[-1]):
                run = open_run(trained, mesh)
            return self._measure(run)
        except UserError as error:
            if is_decoded(config.checkpoint.best_by):
                raise
            self._off = True
            say_once(f"validation prompts are not decoded: {error}")
            return None

    def _measure(self, run: Run) -> Decoded | None:
        decode = run.decode_config(**eval_changes(run.config))
        if self._asked is None:
            prompts = of_split(run, "validation", run.config.train.eval_prompts)
            way = run.configured_way(decode)
            self._asked = make_request(decode, prompts.ids), way, prompts.examples
        request, way, examples = self._asked
        if way.drafter.num_nodes == 1:
            return None
        completions = run.decoder.generate(request, way)
        for number, completion in enumerate(completions, start=1):
            if completion.finish == "error":
                say(f"validation {not_finite(completion, number)}")
                return None
        pairs = [run.finish(completion, decode.stop) for completion in completions]
        finished = tuple(completion for completion, _ in pairs)
        measured = Measurement(finished, prefill_seconds=0.0, decode_seconds=0.0)
        if measured.calls == 0:
            return None
        scores = _scores(run, [text for _, text in pairs], examples)
        return Decoded(measured.tokens_per_call, tuple(measured.acceptance_by_depth), scores)


def _scores(run: Run, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """By name, in percent, as the first process scores them; without those that no record has."""
    metrics = metrics_of(run)
    found, names = score(metrics, texts, examples), shown_metrics(metrics)
    values = [math.nan if found[name] is None else found[name] for name in names]
    shared = zip(names, distributed.agreed(values), strict=True)
    return {name: value for name, value in shared if not math.isnan(value)}

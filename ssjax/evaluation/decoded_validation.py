"""The validation of a training by what counts: prompts decoded with the weights of the moment.

Decoded as the finished run will be: by the real decoder, with the drafter, the node budget and the
batch size of the decode settings, on the mesh of that run (`partitioning.decode_mesh`). No
calibration is looked at. The programs are those of the evaluation at the end; weights are their
argument, so they are compiled at the first validation and never again.
"""

from jax.sharding import Mesh

from ssjax.config.measured import is_decoded
from ssjax.decoding.completion import not_finite
from ssjax.decoding.drafters import Way
from ssjax.decoding.request import Request, make_request
from ssjax.decoding.room import enough_memory
from ssjax.errors import UserError
from ssjax.evaluation.comparison import Measurement
from ssjax.evaluation.prompts import of_split
from ssjax.messages import say, say_once
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
        self._asked: tuple[Request, Way] | None = None

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
        config, decode = trained.config, trained.config.decode
        if self._off or config.train.eval_prompts == 0 or config.streams.num_ahead == 0:
            return None
        try:
            # Opening casts, folds and unrolls the weights beside those that are trained.
            with enough_memory(decode.batch_size, decode.prompt_buckets[-1]):
                run = open_run(trained, mesh)
            return self._measure(run)
        except UserError as error:
            if is_decoded(config.checkpoint.best_by):
                raise
            self._off = True
            say_once(f"validation prompts are not decoded: {error}")
            return None

    def _measure(self, run: Run) -> Decoded | None:
        decode = run.config.decode
        if self._asked is None:
            prompts = of_split(run, "validation", run.config.train.eval_prompts).ids
            self._asked = make_request(decode, prompts), run.configured_way(decode)
        request, way = self._asked
        if way.drafter.num_nodes == 1:
            return None
        completions = run.decoder.generate(request, way)
        for number, completion in enumerate(completions, start=1):
            if completion.finish == "error":
                say(f"validation {not_finite(completion, number)}")
                return None
        finished = tuple(run.finish(completion, decode.stop)[0] for completion in completions)
        measured = Measurement(finished, prefill_seconds=0.0, decode_seconds=0.0)
        if measured.calls == 0:
            return None
        return Decoded(measured.tokens_per_call, tuple(measured.acceptance_by_depth))

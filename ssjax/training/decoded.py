"""What decoding says of a model in training: how far its drafts carry.

Training does not know how to decode. Whoever starts one hands it the function that does.
"""

import dataclasses
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from ssjax.config.measured import PREFIX, TOKENS_PER_CALL
from ssjax.weights.load import Trained


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The validation prompts, decoded with the weights of one step."""

    tokens_per_call: float  # emitted by decode passes, per pass
    acceptance_by_depth: tuple[float, ...]  # passes that kept a node at depth 1, 2, ... / passes
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by metric, in percent

    def record(self) -> dict[str, float]:
        """By name: validation_tokens_per_call, validation_acceptance_1, validation_rouge1, ..."""
        by_depth = enumerate(self.acceptance_by_depth, start=1)
        shares = {f"validation_acceptance_{depth}": share for depth, share in by_depth}
        scores = {f"{PREFIX}{metric}": value for metric, value in self.scores.items()}
        return {TOKENS_PER_CALL: self.tokens_per_call, **shares, **scores}


# To be called by all processes, with weights that stay theirs: nothing is donated. None: there is
# nothing to decode, or nothing that could be measured.
DecodeValidation = Callable[[Trained, Mesh], Decoded | None]

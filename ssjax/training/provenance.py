"""Whether a run that leaves its base as it is learns what that base says.

Streams of a frozen model draft what the model would say. Taught with text of people they learn
another language than the one that they draft for.
"""

from ssjax.config import Config
from ssjax.data import distilled
from ssjax.models.parameters import Params
from ssjax.weights.identity import identity

# Tokens per call of one run on text of its base, and of one on text of people; README.
MEASURED = "3.07 against 1.12 tokens per call on stories260K"


def line_of_data(config: Config, frozen: Params) -> str:
    """What is to be said of the data of a run; empty: nothing.

    Args:
      config: of the run, resolved.
      frozen: the weights of its base; to be called by all processes.
    """
    if config.adaptation.mode != "lossless":
        return ""
    base, data = config.model.pretrained, config.data.path or "the generated sample"
    advice = f"python -m ssjax.distill --workdir {base} --config FILE --target DIR"
    about = distilled.read_about(config.data.path)
    if about is None:
        return (
            f"{data} was not written by {base}, which stays as it is: drafts are kept more often "
            f"where streams learn the base's own answers ({MEASURED}); {advice} writes them, then "
            "train with --config.data.path=DIR"
        )
    if about["asked"]["weights"] != identity(frozen):
        return (
            f"{data} was distilled from {about['base']}, whose weights are not those of {base}: "
            f"drafts are kept less often than on answers of its own, which {advice} writes"
        )
    return ""

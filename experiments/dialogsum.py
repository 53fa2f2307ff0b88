"""Dialogue summaries: DialogSum, or a sample of the same form that the package generates.

Sample  python -m ssjax.train --config experiments/dialogsum.py
        no files needed; minutes on 2 CPU cores
Small   python -m ssjax.train --config experiments/dialogsum.py:small --config.data.path=DIR
        the real DialogSum from random weights; DIR holds train.jsonl, validation.jsonl, test.jsonl

Expect  see the result table in README.md
"""

from ssjax import config as config_lib
from ssjax.errors import UserError


def get_config(variant: str = "sample"):
    """Returns the config of a variant: sample or small."""
    c = config_lib.default_config()
    c.data.task = "dialogsum"
    if variant == "sample":
        c.workdir = "runs/dialogsum"
    elif variant == "small":
        c.workdir = "runs/dialogsum-small"
    else:
        raise UserError(f"experiments/dialogsum.py has no variant {variant!r}: sample or small")
    return c

"""SQL from a question and a CREATE TABLE context: sql-create-context (WikiSQL and Spider).

Paper   python -m ssjax.train --config experiments/sql_context.py:MODEL --config.data.path=DIR
        MODEL one of opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: the paper's
        fine-tune, see ssjax/presets.py. DIR holds train.jsonl, validation.jsonl and test.jsonl
        with the fields question, context and answer; the published file has no splits.
        Hardware: an accelerator that holds the base in bfloat16 (3 GB for 1.3b, 14 GB for 7b)
        and the activations of a batch of 32.
Smoke   python -m ssjax.train --config experiments/sql_context.py:smoke --config.data.path=DIR
        a tiny model from random weights, under a minute, for trying the tools

Expect  opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: not measured
"""

from ssjax import config as config_lib
from ssjax import presets

VARIANTS = ("smoke", *presets.PAPER_MODELS)


def get_config(variant: str = "opt-1.3b"):
    """Returns the config of a variant; see above."""
    c = config_lib.default_config()
    c.data.task = "sql_context"
    if variant == "smoke":
        c.workdir = "runs/sql_context-smoke"
        config_lib.shrink(c)
        c.data.max_prompt_length, c.data.max_target_length = 96, 48
        c.decode.prompt_buckets = (96,)
    elif variant in presets.PAPER_MODELS:
        presets.use_paper_model(c, variant, num_examples=62819, v1_share=6, lengths=(256, 96))
    else:
        raise presets.unknown_variant("experiments/sql_context.py", variant, VARIANTS)
    return c

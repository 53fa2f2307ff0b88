"""SQL from a question and a CREATE TABLE context: sql-create-context (WikiSQL and Spider).

Small   python -m ssjax.train --config experiments/sql_context.py:small --config.data.path=DIR
        from random weights, on a CPU; DIR holds train.jsonl, validation.jsonl and test.jsonl with
        the fields question, context and answer (the published file has no splits)
Smoke   python -m ssjax.train --config experiments/sql_context.py:smoke --config.data.path=DIR
        a tiny model from random weights, under a minute, for trying the tools
Paper   python -m ssjax.train --config experiments/sql_context.py:MODEL --config.data.path=DIR
        MODEL one of opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: the paper's
        fine-tune, see ssjax/presets.py. Hardware: an accelerator that holds the base in bfloat16
        (3 GB for 1.3b, 14 GB for 7b) and the activations of a batch of 32.

Expect  small: not measured; a base of this size, streams put on it: docs/results.md
        opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: not measured
"""

from ssjax import config as config_lib
from ssjax import presets

VARIANTS = ("small", "smoke", *presets.REAL_MODELS, *presets.PAPER_MODELS)


def get_config(variant: str = "small"):
    """Returns the config of a variant; see above."""
    c = config_lib.default_config()
    c.data.task = "sql_context"
    if variant == "small":
        c.workdir = "runs/sql_context-small"
        _small(c)
    elif variant == "smoke":
        c.workdir = "runs/sql_context-smoke"
        config_lib.shrink(c)
        c.data.max_prompt_length, c.data.max_target_length = 96, 48
        c.decode.prompt_buckets = (96,)
    elif variant in presets.REAL_MODELS:
        presets.use_real_model(c, variant, lengths=(256, 96), buckets=(64, 96, 128))
    elif variant in presets.PAPER_MODELS:
        presets.use_paper_model(c, variant, num_examples=62819, v1_share=6, lengths=(256, 96))
    else:
        raise presets.unknown_variant("experiments/sql_context.py", variant, VARIANTS)
    return c


def _small(c):
    c.model.embed_dim = 192
    c.model.num_layers = 6
    c.model.num_heads = 6
    c.model.num_kv_heads = 2
    c.model.head_dim = 32
    c.model.mlp_dim = 512
    c.streams.num_streams = 4
    c.streams.num_stream_layers = 2
    c.loss.stream_weight = 0.3
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 100
    c.data.tokenizer_vocab_size = 2048
    # 99 % of the prompts and 98 % of the targets are whole.
    c.data.max_prompt_length = 104
    c.data.max_target_length = 64
    c.data.length_buckets = (64, 80, 104)  # half of the records have less than 72 tokens
    c.data.batch_size = 32
    c.train.num_steps = 1600
    c.train.eval_every = 400
    c.train.eval_batches = 20
    c.train.log_every = 50
    c.checkpoint.save_every = 200
    c.decode.num_nodes = 16
    c.decode.max_new_tokens = 96
    c.decode.prompt_buckets = (64, 104)
    c.eval.max_records = 500

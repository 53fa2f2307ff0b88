"""Dialogue summaries: DialogSum, or a sample of the same form that the package generates.

Sample  python -m ssjax.train --config experiments/dialogsum.py
        no files needed
Small   python -m ssjax.train --config experiments/dialogsum.py:small --config.data.path=DIR
        the real DialogSum from random weights; DIR holds train.jsonl, validation.jsonl, test.jsonl
Smoke   python -m ssjax.train --config experiments/dialogsum.py:smoke
        a tiny model, under a minute, for trying the tools
Paper   python -m ssjax.train --config experiments/dialogsum.py:MODEL --config.data.path=DIR
        MODEL one of opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: the paper's
        fine-tune, see ssjax/presets.py. Hardware: an accelerator that holds the base in bfloat16
        (3 GB for 1.3b, 14 GB for 7b) and the activations of a batch of 32.

Expect  sample: 3.87 tokens per call, 200 of 200 outputs identical, 2 min 35 s in all
        (2-core AMD EPYC)
        small: not measured; a base of this size, streams put on it: docs/results.md
        opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: not measured
"""

from ssjax import config as config_lib
from ssjax import presets

VARIANTS = ("sample", "small", "smoke", *presets.REAL_MODELS, *presets.PAPER_MODELS)


def get_config(variant: str = "sample"):
    """Returns the config of a variant; see above."""
    c = config_lib.default_config()
    c.data.task = "dialogsum"
    if variant == "sample":
        c.workdir = "runs/dialogsum"
        _sample(c)
    elif variant == "small":
        c.workdir = "runs/dialogsum-small"
        _small(c)
    elif variant == "smoke":
        c.workdir = "runs/dialogsum-smoke"
        _sample(c)
        config_lib.shrink(c)
    elif variant in presets.REAL_MODELS:
        presets.use_real_model(c, variant, lengths=(512, 96), buckets=(192, 320, 512))
    elif variant in presets.PAPER_MODELS:
        presets.use_paper_model(c, variant, num_examples=12460, v1_share=2, lengths=(768, 128))
    else:
        raise presets.unknown_variant("experiments/dialogsum.py", variant, VARIANTS)
    return c


def _sample(c):
    c.model.embed_dim = 128
    c.model.num_layers = 4
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.head_dim = 32
    c.model.mlp_dim = 384
    c.loss.stream_weight = 0.3
    c.optimizer.learning_rate = 3e-3
    c.data.tokenizer_vocab_size = 1536
    c.data.max_prompt_length = 136
    c.data.max_target_length = 44
    c.data.batch_size = 16
    c.train.num_steps = 400
    c.train.log_every = 50
    c.train.eval_every = 200
    c.train.eval_batches = 12
    c.decode.max_new_tokens = 44
    c.decode.prompt_buckets = (136,)


def _small(c):
    c.model.embed_dim = 192
    c.model.num_layers = 6
    c.model.num_heads = 6
    c.model.num_kv_heads = 2
    c.model.head_dim = 32
    c.model.mlp_dim = 512
    c.loss.stream_weight = 0.3
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 100
    c.data.tokenizer_vocab_size = 4096
    c.data.max_prompt_length = 384
    c.data.max_target_length = 72
    c.data.length_buckets = (192, 288)
    c.data.batch_size = 16
    c.train.num_steps = 2000
    c.train.log_every = 50
    c.train.eval_every = 500
    c.train.eval_batches = 16
    c.checkpoint.save_every = 100
    c.decode.num_nodes = 16
    c.decode.max_new_tokens = 80
    c.decode.prompt_buckets = (128, 256, 384)

"""Restaurant descriptions from meaning representations: the E2E NLG challenge.

Small   python -m ssjax.train --config experiments/e2e_nlg.py:small --config.data.path=DIR
        from random weights; DIR holds trainset.csv, devset.csv, testset_w_refs.csv
Medium  python -m ssjax.train --config experiments/e2e_nlg.py:medium --config.data.path=DIR
        the same with 10M parameters: large enough for drafts to pay on a CPU
Smoke   python -m ssjax.train --config experiments/e2e_nlg.py:smoke --config.data.path=DIR
Paper   python -m ssjax.train --config experiments/e2e_nlg.py:MODEL --config.data.path=DIR
        MODEL one of opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: the paper's
        fine-tune, see ssjax/presets.py. Hardware: an accelerator that holds the base in bfloat16
        (3 GB for 1.3b, 14 GB for 7b) and the activations of a batch of 32.

Expect  small: 3.28 tokens per call at 16 draft nodes, 420 of 420 outputs identical, 33 min
        of training (2-core AMD EPYC, beside other work)
        medium: 2.66 tokens per call at 7 draft nodes, 100 of 100 identical, 1.13 times as fast as
        plain decoding; 1.18 times after `ssjax.calibrate` (same machine)
        (both of before streams knew root and parent; with streams.parent_rank and root_rank 0)
        opt-1.3b, phi-1.5, openllama-7b, mistral-7b, llama-2-7b: not measured
"""

from ssjax import config as config_lib
from ssjax import presets

VARIANTS = ("small", "medium", "smoke", *presets.REAL_MODELS, *presets.PAPER_MODELS)


def get_config(variant: str = "small"):
    """Returns the config of a variant; see above."""
    c = config_lib.default_config()
    c.data.task = "e2e_nlg"
    if variant == "small":
        c.workdir = "runs/e2e_nlg-small"
        _small(c)
    elif variant == "medium":
        c.workdir = "runs/e2e_nlg-medium"
        _small(c)
        _medium(c)
    elif variant == "smoke":
        c.workdir = "runs/e2e_nlg-smoke"
        _small(c)
        config_lib.shrink(c)
    elif variant in presets.REAL_MODELS:
        presets.use_real_model(c, variant, lengths=(192, 128), buckets=(32, 48, 64))
    elif variant in presets.PAPER_MODELS:
        presets.use_paper_model(c, variant, num_examples=42061, v1_share=2, lengths=(128, 96))
    else:
        raise presets.unknown_variant("experiments/e2e_nlg.py", variant, VARIANTS)
    return c


def _medium(c):
    c.model.embed_dim = 384
    c.model.num_layers = 6
    c.model.num_heads = 6
    c.model.head_dim = 64
    c.model.mlp_dim = 1024
    c.train.num_steps = 500
    c.train.eval_every = 250
    c.decode.num_nodes = 7
    c.eval.max_records = 100


def _small(c):
    c.model.embed_dim = 192
    c.model.num_layers = 4
    c.model.num_heads = 6
    c.model.num_kv_heads = 2
    c.model.head_dim = 32
    c.model.mlp_dim = 512
    c.streams.num_streams = 4
    c.streams.num_stream_layers = 2
    c.loss.stream_weight = 0.3
    c.optimizer.learning_rate = 2e-3
    c.data.tokenizer_vocab_size = 2048
    c.data.max_prompt_length = 44
    c.data.max_target_length = 40
    c.data.batch_size = 32
    c.train.num_steps = 1600
    c.train.eval_every = 400
    c.train.eval_batches = 10
    c.train.log_every = 50
    c.checkpoint.save_every = 200
    c.decode.num_nodes = 16
    c.decode.max_new_tokens = 64
    c.decode.prompt_buckets = (48,)

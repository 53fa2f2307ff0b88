"""A real pretrained model of 260,000 parameters, fine-tuned on a laptop in both adapted modes.

BASE is the Llama that llama2.c calls stories260K (trained on TinyStories), in Hugging Face form.

Own text   python benchmarks/self_generated.py --base BASE --target DIR \
               --begin "Once upon a time" --begin "One day"
           python -m ssjax.train --config experiments/stories260k.py:lossless \
               --config.model.pretrained=BASE --config.data.path=DIR
           and the same with :shared
E2E NLG    python -m ssjax.train --config experiments/stories260k.py:e2e-lossless \
               --config.model.pretrained=BASE --config.data.path=E2E_DIR
           and the same with :e2e-shared
           For :e2e-lossless better from what BASE answers to those prompts:
           python -m ssjax.distill --workdir BASE --config.data.path=E2E_DIR --target DIR \
               --config experiments/stories260k.py:e2e-lossless --num_records 1500
Then       python -m ssjax.verify --workdir runs/stories260k-VARIANT

Expect     tokens per call, 8 draft nodes; every output equal to plain decoding, every certificate
           holds; 600 steps take 2 to 10 minutes (2-core AMD EPYC, beside other work)
           lossless 3.07   shared 3.72   e2e-lossless 1.12   e2e-shared 3.52
           e2e-lossless shows the limit of the mode: its streams learn what people wrote about
           restaurants, and the frozen base goes on telling stories. Distilled, with 400 steps
           and the parent (streams.root_rank 0): 3.34. The other figures are of streams that
           know neither (parent_rank 0, root_rank 0)
"""

from ssjax import config as config_lib
from ssjax import presets

VARIANTS = ("lossless", "shared", "e2e-lossless", "e2e-shared")


def get_config(variant: str = "lossless"):
    """Returns the config of a variant; see above."""
    if variant not in VARIANTS:
        raise presets.unknown_variant("experiments/stories260k.py", variant, VARIANTS)
    c = config_lib.default_config()
    c.workdir = f"runs/stories260k-{variant}"
    c.adaptation.mode = variant.removeprefix("e2e-")
    c.adaptation.rank, c.adaptation.alpha = 16, 32.0
    c.streams.num_streams, c.streams.num_stream_layers = 4, 3
    lossless = c.adaptation.mode == "lossless"
    c.loss.main_weight, c.loss.stream_weight = (0.0, 1.0) if lossless else (1.0, 0.3)
    c.optimizer.learning_rate, c.optimizer.decay = 8e-3, "linear"
    c.optimizer.weight_decay = 0.0
    c.data.batch_size = 16
    c.train.num_steps = 600
    c.train.log_every, c.train.eval_every, c.train.eval_batches = 50, 200, 4
    c.checkpoint.save_every = 200
    c.decode.num_nodes = 8
    if variant.startswith("e2e"):
        c.data.task = "e2e_nlg"
        c.data.max_prompt_length, c.data.max_target_length = 136, 88
        c.decode.prompt_buckets, c.decode.max_new_tokens = (136,), 96
        c.eval.max_records = 100
    else:
        c.data.task = "pairs"
        # The continuations are cut at 96 tokens: where they stop is nothing to learn from.
        c.data.max_prompt_length, c.data.max_target_length = 48, 96
        c.decode.prompt_buckets, c.decode.max_new_tokens = (48,), 96
    return c

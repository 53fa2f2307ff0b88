"""Drafts for a chat model that stays as it is: the paper's lossless mode on instruction data.

Run     python -m ssjax.train --config experiments/chat_lossless.py:MODEL --config.data.path=DIR
        MODEL one of llama-2-7b-chat, mistral-7b-instruct, qwen2.5-7b-instruct (the default).
        DIR holds train.jsonl, validation.jsonl and test.jsonl, each line {"messages": [...]} or
        ShareGPT's {"conversations": [...]}. Answers that the model wrote itself teach the streams
        most. Hardware: an accelerator that holds the base in bfloat16 (14 to 15 GB) and the
        activations of a batch of 32; the checkpoints are megabytes.
Then    python -m ssjax.verify --workdir runs/chat-MODEL

Expect  llama-2-7b-chat, mistral-7b-instruct, qwen2.5-7b-instruct: not measured
"""

from ssjax import config as config_lib
from ssjax import presets

MODELS = {
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
}


VARIANTS = tuple(MODELS)


def get_config(variant: str = "qwen2.5-7b-instruct"):
    """Returns the config of a model; see above."""
    c = config_lib.default_config()
    c.data.task = "chat"
    if variant not in MODELS:
        raise presets.unknown_variant("experiments/chat_lossless.py", variant, VARIANTS)
    c.workdir = f"runs/chat-{variant}"
    # 5 epochs of 10,000 answers; the paper does not say how many it used.
    presets.use_lossless(c, MODELS[variant], num_examples=10000, lengths=(1024, 512))
    return c

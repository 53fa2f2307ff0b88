"""The models of `tiny_models`, made and run with `transformers`.

It fills every parameter with noise, biases and norms too: at their initial 0 and 1 a forgotten one
would not show. Values are rounded to bfloat16, so that a file of half the size restores them
exactly.
"""

import contextlib
import copy
import json
import warnings
from typing import Any

import ml_dtypes
import numpy as np
from tiny_models import NEW_TOKENS, TinyModel

_LAST_NORMS = (
    "model.norm.weight",
    "model.final_layernorm.weight",
    "transformer.ln_f.weight",
    "model.decoder.final_layer_norm.weight",
)


@contextlib.contextmanager
def quiet():
    """Warnings about matters inside transformers and torch are no errors of our tests."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)


def hf_config(config_json: dict[str, Any]):
    """The transformers config of a config.json; attention as written down, not a fused kernel.

    Of a model that reads images too, that of its text model.
    """
    import transformers

    with quiet():
        # Of a copy: it writes into the groups that it is given.
        config = transformers.AutoConfig.for_model(**copy.deepcopy(config_json)).get_text_config()
    config._attn_implementation = "eager"  # the only one with the soft caps of Gemma 2
    return config


def build(tiny: TinyModel, seed: int):
    """The transformers model with every parameter random, float32, in evaluation mode."""
    import torch
    import transformers

    torch.set_num_threads(1)  # more would only wait for each other
    with quiet():
        # In float32 from the start: constants are rounded where the model is made.
        model = transformers.AutoModelForCausalLM.from_config(
            hf_config(tiny.config_json), dtype=torch.float32
        )
    rng = np.random.default_rng(seed)
    offset = 0.0 if tiny.config_json["model_type"].startswith("gemma") else 1.0
    post_norm = not tiny.config_json.get("do_layer_norm_before", True)
    for name, parameter in sorted(model.named_parameters()):
        noise = _noise(rng, name, tuple(parameter.shape), offset, post_norm)
        noise = noise.astype(ml_dtypes.bfloat16).astype(np.float32)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(noise))
    return model.eval()


def _noise(rng, name, shape, norm_offset, post_norm):
    """Random values that make a lively model: nothing cancels, no greedy loop of one token.

    Attention is sharp, layers outweigh the embedding of the last token (which a tied head would
    repeat for ever), biases do not outweigh the layers; post-norm layers stay below their input.
    """
    noise = rng.standard_normal(shape)
    if name.endswith(".bias"):
        return 0.2 * noise
    if len(shape) == 1:
        larger = 3.0 * (name in _LAST_NORMS) + 2.0 * ("post_feedforward" in name)
        return norm_offset + larger + 0.3 * noise
    if any(part in name for part in ("embed_tokens", "wte", "lm_head")):
        return (1.0 if post_norm else 0.15) * noise
    if any(part in name for part in ("embed_positions", "wpe")):
        return 0.5 * noise
    fan_in = shape[0] if ".c_" in name else shape[1]
    return (0.9 if post_norm else 1.5) * noise / np.sqrt(fan_in)


def load(directory):
    """Reads a model directory with transformers.

    Returns:
      The model, and by kind the names that are missing, unexpected or of another shape.
    """
    import torch
    import transformers

    with quiet():
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    return model.eval(), info


def config_v5(model) -> dict[str, Any]:
    """config.json as transformers 5 writes it: rotary settings in a group, a kind per layer."""
    values = json.loads(model.config.to_json_string())
    return values | {"architectures": [type(model).__name__]}


def count_parameters(config_json: dict[str, Any]) -> int:
    """Parameters of the transformers model, a tied table once; none of them is made."""
    import torch
    import transformers

    with torch.device("meta"), quiet():
        model = transformers.AutoModelForCausalLM.from_config(hf_config(config_json))
    return sum(parameter.numel() for parameter in model.parameters())


def save(model, directory) -> None:
    """A model directory as transformers writes it."""
    with quiet():
        model.save_pretrained(directory)


def rotary_frequencies(config) -> dict[str, np.ndarray]:
    """Frequencies of the rotary embedding of a transformers config, by kind of layer."""
    import torch
    import transformers

    with torch.device("meta"), quiet():
        model = transformers.AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            buffers = dict(type(module)(config=config).named_buffers())
            return {
                name: buffer.numpy()
                for name, buffer in buffers.items()
                if name.endswith("inv_freq") and "original" not in name
            }
    return {}


def tensors(model) -> dict[str, Any]:
    """The parameters as torch tensors by name, a tied table once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def run(model, row: list[int]) -> np.ndarray:
    """Logits [T, V] float32 of one sequence, alone and without a cache."""
    import torch

    with torch.no_grad(), quiet():
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits
    return logits[0].float().numpy()


def continue_greedily(model, prompt: list[int]) -> tuple[list[int], float]:
    """NEW_TOKENS ids after a prompt, by a whole pass for each.

    Returns:
      The ids, and the smallest distance of the two best logits on the way.
    """
    ids, margin = list(prompt), np.inf
    for _ in range(NEW_TOKENS):
        last = run(model, ids)[-1]
        ids.append(int(last.argmax()))
        second, first = np.sort(last)[-2:]
        margin = min(margin, float(first - second))
    return ids[len(prompt) :], margin

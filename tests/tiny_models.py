"""Tiny random models of every Hugging Face family, made and run with `transformers`.

The descriptions need no torch. `config_json` is written as the published files of the family
are; transformers fills every parameter with noise, biases and norms too: at their initial 0 and 1
a forgotten one would not show. Values are rounded to bfloat16, so that a file of half the size
restores them exactly.
"""

import contextlib
import dataclasses
import json
import warnings
from typing import Any

import ml_dtypes
import numpy as np

# Tokens per row. Sequences are longer than the windows and than the length before rope scaling.
ROW_LENGTHS = (45, 28, 13, 6)
PROMPT_LENGTHS = (36, 19, 7, 1)
NEW_TOKENS = 64
MAX_LENGTH = max(PROMPT_LENGTHS) + NEW_TOKENS  # learned tables of positions end exactly here


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A model and how its files look.

    Attributes:
      name: of the golden's directory.
      seeds: of the committed weights, and of those that the live test makes; chosen for wide
        margins, many different tokens and logits that float32 hardly moves.
      config_json: in the form of the published files.
      num_stream_layers: Ns; the border lies so that both stacks hold both kinds of layers, where
        a family has two kinds and the order of its layers allows it.
      strip: a prefix of the tensor names that the published files lack.
      extra: buffers in the published files, by name; they hold what every model computes.
      tied_head: whether the file repeats the tied table as lm_head.weight.
      num_files: the weights are split over so many.
    """

    name: str
    seeds: tuple[int, int]
    config_json: dict[str, Any]
    num_stream_layers: int = 2
    strip: str = ""
    extra: tuple[tuple[str, list], ...] = ()
    tied_head: bool = False
    num_files: int = 1

    @property
    def vocab_size(self) -> int:
        return self.config_json["vocab_size"]


_LAST_NORMS = (
    "model.norm.weight",
    "model.final_layernorm.weight",
    "transformer.ln_f.weight",
    "model.decoder.final_layer_norm.weight",
)


def _llama(**changes):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | changes


def _without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


_MISTRAL = _llama(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=7)
_QWEN2 = _llama(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    rms_norm_eps=1e-6,
    max_window_layers=2,
    use_sliding_window=False,
    sliding_window=7,
    tie_word_embeddings=True,
)
_GEMMA = _without(
    _llama(
        architectures=["GemmaForCausalLM"],
        model_type="gemma",
        rms_norm_eps=1e-6,
        attention_bias=False,
        head_dim=12,
    ),
    "tie_word_embeddings",
)
_GEMMA2 = _GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 7,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 9.0,
    "sliding_window": 7,
}
_GEMMA3 = _GEMMA2 | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_local_base_freq": 30,
    "rope_scaling": {"factor": 4.0, "rope_type": "linear"},
    "sliding_window_pattern": 3,
}
_OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 61,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "max_position_embeddings": MAX_LENGTH,
    "word_embed_proj_dim": 32,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "dropout": 0.1,
    "torch_dtype": "float16",
}

TINY_MODELS = (
    TinyModel("opt", (15, 3), _OPT, tied_head=True),
    TinyModel(
        "opt_350m",
        (6, 1),
        _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
        strip="model.",
    ),
    TinyModel(
        "phi",
        (6, 4),
        {
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": None,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 128,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": False,
            "rope_scaling": None,
            "rope_theta": 100.0,
            "tie_word_embeddings": False,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.1,
            "torch_dtype": "float16",
        },
    ),
    TinyModel("llama", (2, 7), _llama(), num_files=2),
    TinyModel(
        "llama3",
        (4, 21),
        # Wavelengths 6, 20, 63, 199: one kept, one between, two stretched.
        _llama(
            tie_word_embeddings=True,
            head_dim=8,
            rope_theta=100.0,
            rope_scaling={
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
                "rope_type": "llama3",
            },
        ),
    ),
    TinyModel(
        "llama_linear",
        (5, 2),
        # As the first Llamas: no groups, no theta, buffers of the rotary positions in the file.
        _without(
            _llama(rope_scaling={"type": "linear", "factor": 3.0}),
            "num_key_value_heads",
            "rope_theta",
        ),
        extra=tuple(
            (f"model.layers.{i}.self_attn.rotary_emb.inv_freq", [1.0, 0.1, 0.01, 0.001])
            for i in range(4)
        ),
    ),
    TinyModel(
        "llama_bias", (9, 0), _llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1)
    ),
    TinyModel("mistral", (9, 2), _MISTRAL),
    TinyModel("qwen2", (7, 9), _QWEN2),
    TinyModel(
        "qwen2_window",
        (7, 6),
        _QWEN2 | {"use_sliding_window": True, "tie_word_embeddings": False},
        num_stream_layers=3,
    ),
    TinyModel(
        "qwen3",
        (14, 15),
        _llama(
            architectures=["Qwen3ForCausalLM"],
            model_type="qwen3",
            head_dim=12,
            attention_bias=True,
            max_window_layers=4,
            use_sliding_window=False,
            sliding_window=None,
            tie_word_embeddings=True,
        ),
    ),
    # "gelu" is what the first Gemma files say and not what they mean.
    TinyModel("gemma", (0, 4), _GEMMA | {"hidden_act": "gelu", "num_key_value_heads": 1}),
    TinyModel("gemma2", (4, 7), _GEMMA2),
    TinyModel("gemma3", (7, 9), _GEMMA3),
    TinyModel(
        "gpt2",
        (6, 9),
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": MAX_LENGTH,
            "n_ctx": MAX_LENGTH,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "resid_pdrop": 0.1,
        },
        strip="transformer.",
        extra=tuple((f"h.{i}.attn.bias", np.tri(4)[None, None].tolist()) for i in range(4)),
    ),
)


def find(name: str) -> TinyModel:
    """The description of this name."""
    return next(tiny for tiny in TINY_MODELS if tiny.name == name)


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
    """The transformers config of a config.json; attention as written down, not a fused kernel."""
    import transformers

    with quiet():
        config = transformers.AutoConfig.for_model(**config_json)
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


def random_ids(tiny: TinyModel, seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Random sequences of these lengths."""
    rng = np.random.default_rng([seed, *lengths])
    return [rng.integers(0, tiny.vocab_size, length).tolist() for length in lengths]


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

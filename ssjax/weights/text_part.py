"""The language model inside one that reads images too: its config.json, and its tensors.

Gemma 3 of 4B, 12B and 27B is published so. Text alone makes it compute what the text model does,
whose config and names follow; whatever is for images is left out, in exports too.
"""

from collections.abc import Mapping
from typing import Any

from ssjax.files.objects import Fields
from ssjax.messages import say_once
from ssjax.weights.tensor_files import StoredTensor

# What config.json files leave out of the text model, because it is transformers' default.
_GEMMA3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_OF_BOTH = (  # said once, outside of the text model
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
)

# In front of the names of tensors: published files, and those of transformers 5.
_PREFIXES = {"language_model.": "", "model.language_model.": "model."}
_OF_IMAGES = ("vision_tower.", "multi_modal_projector.")


def text_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config.json of the text model; of a model without images the same.

    Args:
      values: a config.json.
      where: its path, for messages.

    Raises:
      UserError: the text model is not an object.
    """
    config = Fields(values, where)
    kind = values.get("architectures") or values.get("model_type")
    if kind not in (["Gemma3ForConditionalGeneration"], "gemma3"):
        return dict(values)
    say_once(f"{where}: of this model its text part is read, nothing that is for images")
    both = {key: values[key] for key in _OF_BOTH if config.has(key)}
    named = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return {**_GEMMA3, **config.group("text_config").values, **both, **named}


def text_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the text model by the names that it has alone; without images the same."""
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), None)
    if prefix is None:
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            found[_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
        elif not name.removeprefix("model.").startswith(_OF_IMAGES):
            found[name] = tensor
    return found

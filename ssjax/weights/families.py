"""The Hugging Face families: what their config.json means, and what their tensors are called.

A family is one `Family`: the architectures it serves, a function from config.json to the fields
of `ModelConfig` (see `architectures`), and a table from our parameter names to theirs (see
`naming`). A family with known mathematics adds an entry to `FAMILIES`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ssjax.errors import UserError
from ssjax.files.objects import Fields, show
from ssjax.weights import architectures, naming
from ssjax.weights.naming import Tensor

DEQUANTISE = (
    "quantised weights are not read; dequantise them with transformers (model.dequantize(), then "
    "model.save_pretrained(NEW)) or take the model that they were made from"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of published model."""

    name: str
    architectures: tuple[str, ...]  # as config.json names them
    read_fields: Callable[[Fields], dict[str, Any]]  # config.json -> fields of ModelConfig
    tensors: Mapping[str, Tensor]
    prefix: str  # of the tensor names, which some files leave out

    def model_fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `ModelConfig` that a config.json decides.

        Args:
          values: its content.

        Raises:
          UserError: a key is missing or has a value that we do not compute; names both.
        """
        config = Fields(values)
        if config.has("quantization_config"):
            raise config.wrong("quantization_config", f"left out: {DEQUANTISE}")
        if config.has("per_layer_config"):
            raise config.wrong("per_layer_config", "left out: all layers have the same sizes here")
        config.refuse(is_encoder_decoder=False)
        return self.read_fields(config)


def find_family(values: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json.

    Args:
      values: its content.
      where: its path, for messages.

    Raises:
      UserError: none of ours, or two of them.
    """
    config = Fields(values)
    try:
        architectures, kind = config.texts("architectures"), config.text("model_type", "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    of_kind = _OF_TYPE.get(kind, "")
    named = architectures[0] if architectures else of_kind
    family = next((family for family in FAMILIES if named in family.architectures), None)
    if not architectures and not kind:
        raise UserError(f'{where}: neither "architectures" nor "model_type" says what model it is')
    if family is None:
        known = ", ".join(family.architectures[0] for family in FAMILIES)
        raise UserError(
            f"{where}: architecture {show(named or kind)} is not known; these are: {known}"
        )
    if kind and of_kind not in family.architectures:
        raise UserError(
            f'{where}: "model_type" is {show(kind)}, which is not that of "architectures" '
            f"{show(named)}; correct one of them"
        )
    return family


FAMILIES = (
    Family("Llama", ("LlamaForCausalLM",), architectures.llama, naming.LLAMA, "model."),
    Family("Mistral", ("MistralForCausalLM",), architectures.mistral, naming.LLAMA, "model."),
    Family("Granite", ("GraniteForCausalLM",), architectures.granite, naming.LLAMA, "model."),
    Family("OLMo 2", ("Olmo2ForCausalLM",), architectures.olmo2, naming.GEMMA2, "model."),
    Family("SmolLM3", ("SmolLM3ForCausalLM",), architectures.smollm3, naming.LLAMA, "model."),
    Family("Qwen2", ("Qwen2ForCausalLM",), architectures.qwen2, naming.LLAMA, "model."),
    Family("Qwen3", ("Qwen3ForCausalLM",), architectures.qwen3, naming.LLAMA, "model."),
    Family("Gemma", ("GemmaForCausalLM",), architectures.gemma, naming.LLAMA, "model."),
    Family("Gemma 2", ("Gemma2ForCausalLM",), architectures.gemma2, naming.GEMMA2, "model."),
    Family("Gemma 3", ("Gemma3ForCausalLM",), architectures.gemma3, naming.GEMMA2, "model."),
    Family("OPT", ("OPTForCausalLM",), architectures.opt, naming.OPT, "model."),
    Family("Phi", ("PhiForCausalLM",), architectures.phi, naming.PHI, "model."),
    Family("Phi-3", ("Phi3ForCausalLM",), architectures.phi3, naming.PHI3, "model."),
    Family("GPT-2", ("GPT2LMHeadModel",), architectures.gpt2, naming.GPT2, "transformer."),
)

# For a config.json without "architectures".
_OF_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "opt": "OPTForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

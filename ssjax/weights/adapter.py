"""What a fine-tune adds to its base, in files that other tools can read.

    ssjax.json                  our config, and the digest of the base weights
    streams.safetensors         stream embeddings and all that nobody else can run
    adapter_config.json         LoRA of main rows in PEFT's form, where the family keeps its
    adapter_model.safetensors   projections apart

LoRA of stream rows alone, all of the lossless mode and the streams' own of the detached one, stays
in streams.safetensors, because a PEFT reader would apply it to every row.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file

from ssjax import config as config_lib
from ssjax.config import AdaptationConfig, Config
from ssjax.errors import UserError
from ssjax.files.objects import Fields
from ssjax.files.reading import read_json_object, to_json
from ssjax.files.writing import write_atomic
from ssjax.models.lora import is_of_main_rows, trunk_lora
from ssjax.models.parameters import Params, flatten, unflatten
from ssjax.parallel import distributed
from ssjax.parallel.partitioning import to_host
from ssjax.weights.families import Family
from ssjax.weights.huggingface import save_tensors
from ssjax.weights.naming import Tensor

# Patterns of all files of a portable directory but the weights of a base beside them.
FILES = ("streams.safetensors", "adapter_*", "*.json", "*.model", "*.txt", "*.jinja")
_FORMAT = 1
_HINT = "give a directory that python -m ssjax.export --format adapter wrote"
_PEFT_PREFIX = "base_model.model."
_PEFT_LEAVES = {"lora_a": "lora_A", "lora_b": "lora_B"}


@dataclasses.dataclass(frozen=True)
class Addition:
    """The leaves that a fine-tune adds to a base."""

    config: Config
    leaves: Params  # scanned form, float32
    base_fingerprint: str  # of the weights they were trained on; empty: their own


def is_portable(directory: Path) -> bool:
    """Whether `write_addition` wrote there."""
    return (directory / "ssjax.json").is_file()


def write_addition(directory: Path, addition: Addition, family: Family | None) -> None:
    """Writes the files above; to be called by all processes, of which the first one writes.

    Args:
      directory: made if missing; ssjax.json comes last.
      addition: what to write.
      family: of the base; None: LoRA is not written in PEFT's form.
    """
    leaves = to_host(flatten(addition.leaves))
    if distributed.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, addition, leaves, family)


def _write(directory, addition, leaves: Mapping[str, np.ndarray], family) -> None:
    config = addition.config
    in_peft = {}
    of_main_rows = trunk_lora(config.adaptation) is not None
    if of_main_rows and family is not None and _has_peft_form(family):
        in_peft = {k: leaf for k, leaf in leaves.items() if is_of_main_rows(tuple(k.split("/")))}
        tensors = _to_peft(in_peft, family, config)
        save_tensors(directory / "adapter_model.safetensors", tensors)
        described = _peft_config(config.adaptation, config.model.pretrained, tensors)
        write_atomic(directory / "adapter_config.json", to_json(described))
    rest = {
        name: np.ascontiguousarray(leaf) for name, leaf in leaves.items() if name not in in_peft
    }
    save_tensors(directory / "streams.safetensors", rest)
    values = {
        "format": _FORMAT,
        "base_fingerprint": addition.base_fingerprint,
        "config": config_lib.to_dict(config),
    }
    write_atomic(directory / "ssjax.json", to_json(values))


def read_config(directory: Path) -> Config:
    """The config of a portable directory, without its weights.

    Raises:
      UserError: not such a directory, or a damaged one.
    """
    return _read_config(_read_values(directory))


def read_addition(directory: Path, family: Family | None) -> Addition:
    """The inverse of `write_addition`; its leaves are NumPy arrays.

    Raises:
      UserError: not such a directory, or a damaged one.
    """
    values = _read_values(directory)
    config = _read_config(values)
    base = values.text("base_fingerprint", None)
    if values.values.get("format") != _FORMAT or base is None:
        raise UserError(
            f"{values.where}: not of format {_FORMAT}, which this version reads; export it again"
        )
    try:
        leaves = load_file(directory / "streams.safetensors")
        peft = directory / "adapter_model.safetensors"
        if peft.is_file():
            if family is None:
                raise UserError(f"{peft}: its base is not a Hugging Face model")
            leaves |= _from_peft(load_file(peft), family, config)
    except OSError as error:
        place = error.filename or directory / "streams.safetensors"
        raise UserError(f"{place}: {error.strerror or error}; {_HINT}") from None
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory}: a damaged adapter ({error}); export it again") from None
    return Addition(config, unflatten(leaves), base)


def _read_values(directory: Path) -> Fields:
    path = directory / "ssjax.json"
    return Fields(read_json_object(path, _HINT), str(path), "export it again")


def _read_config(values: Fields) -> Config:
    config = values.group("config").values
    if not config:
        raise values.wrong("config", "an object")
    try:
        return config_lib.from_saved(config)
    except UserError as error:
        raise UserError(f"{values.where}: {error}") from None


def _has_peft_form(family: Family) -> bool:
    return not any(tensor.parts for tensor in family.tensors.values())


def _module_of(name: str, family: Family) -> tuple[str, str, str]:
    """Our name of a LoRA leaf -> (stack, name of the module with {} for the layer, PEFT leaf)."""
    stack, _, rest = name.partition("/layers/")
    projection, _, leaf = rest.rpartition("/")
    tensor: Tensor = family.tensors[f"layer/{projection}/weight"]
    module = family.prefix + tensor.name.removesuffix(".weight")
    return stack, module, _PEFT_LEAVES[leaf]


def _first_layer(stack: str, config: Config) -> int:
    trunk = config.model.num_layers - config.streams.num_stream_layers
    return trunk if stack == "stream_layers" else 0


def _to_peft(leaves, family, config):
    tensors = {}
    for name, stacked in leaves.items():
        stack, module, leaf = _module_of(name, family)
        for row, array in enumerate(stacked):
            layer = module.format(_first_layer(stack, config) + row)
            tensors[f"{_PEFT_PREFIX}{layer}.{leaf}.weight"] = np.ascontiguousarray(array)
    return tensors


def _from_peft(tensors, family, config):
    """Stacks the layers again; what the names are follows from the targets of the config."""
    leaves = {}
    border = config.model.num_layers - config.streams.num_stream_layers
    stacks = {"trunk": range(border), "stream_layers": range(border, config.model.num_layers)}
    for table_name in family.tensors:
        kind, _, rest = table_name.partition("/")
        projection = rest.removesuffix("/weight")
        if kind != "layer" or not rest.endswith("_proj/weight"):
            continue
        for stack, layers in stacks.items():
            for ours in _PEFT_LEAVES:
                name = f"{stack}/layers/{projection}/{ours}"
                _, module, leaf = _module_of(name, family)
                names = [f"{_PEFT_PREFIX}{module.format(i)}.{leaf}.weight" for i in layers]
                if names and names[0] in tensors:
                    leaves[name] = np.stack([tensors.pop(name) for name in names])
    if tensors:
        raise ValueError(f"tensor {next(iter(tensors))} has no place in this model")
    return leaves


def _peft_config(adaptation: AdaptationConfig, base: str, tensors) -> dict:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adaptation.rank,
        "lora_alpha": adaptation.alpha,
        "lora_dropout": adaptation.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }

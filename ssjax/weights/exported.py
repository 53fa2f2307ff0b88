"""The three forms that a trained model is exported in; see `ssjax.export` for what they are for."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssjax import config as config_lib
from ssjax import messages
from ssjax.config import Config, DecodeConfig
from ssjax.data.tokenizers import for_transformers
from ssjax.data.tokenizers.settings import GENERATION
from ssjax.errors import UserError
from ssjax.files.reading import parse_json_object, to_json
from ssjax.files.writing import write_atomic
from ssjax.models import lora
from ssjax.models.parameters import Params, cast, fingerprint, split
from ssjax.parallel import distributed
from ssjax.weights import adapter, checkpoint, huggingface
from ssjax.weights.load import Trained, make_model


def write_hf(directory: Path, trained: Trained, dtype: str) -> None:
    """Weights and tokenizer for transformers, and the streams beside them.

    What ends an output, what begins a prompt and how to decode stand in every file that
    transformers looks for it in: its own defaults are those of other models.

    Raises:
      UserError: there is no Hugging Face form of this model.
    """
    config, params = merged(trained)
    if config.streams.main_reads_streams:
        raise UserError(
            "a main stream that reads its streams has no form in other tools; use --format orbax"
        )
    weights, additions = split(params, lambda path: not lora.is_new(path))
    weights = cast(weights, dtype)
    model = config.model
    config_json = trained.base_config or huggingface.llama_config_json(model)
    config_json = dict(config_json) | {"torch_dtype": dtype, "dtype": dtype}
    files, warning = for_transformers.exported_files(
        trained.tokenizer, config_json.get("model_type", "")
    )
    messages.say_once(warning)
    ids = parse_json_object(files[GENERATION], GENERATION)
    config_json |= ids
    files[GENERATION] = to_json(ids | _generation(config.decode)).encode()
    _write(directory, files)
    # Read back in the compute dtype of its mode, which the digest is part of.
    kept = "float32" if config.adaptation.mode == "full" else model.dtype
    addition = adapter.Addition(config, additions, fingerprint(cast(weights, kept)))
    adapter.write_addition(directory, addition, None)
    huggingface.write_params(directory, model, weights, config_json)


def _generation(decode: DecodeConfig) -> dict[str, Any]:
    """What generation_config.json says about how to decode, beside ids."""
    values = {"do_sample": decode.temperature > 0, "max_new_tokens": decode.max_new_tokens}
    if decode.temperature > 0:
        values |= {"temperature": decode.temperature, "top_k": decode.top_k, "top_p": decode.top_p}
        values |= {"min_p": decode.min_p} if decode.min_p else {}
    if decode.repetition_penalty != 1:
        values["repetition_penalty"] = decode.repetition_penalty
    if decode.banned_tokens:
        values["suppress_tokens"] = list(decode.banned_tokens)
    if decode.min_new_tokens:
        values["min_new_tokens"] = decode.min_new_tokens
    return values


def write_orbax(directory: Path, trained: Trained, dtype: str) -> None:
    """All parameters, with config."""
    config, params = merged(trained)
    checkpoint.save_model(directory / "params", params)
    distributed.first(lambda: trained.tokenizer.save(directory))
    files = {}
    if trained.base_config is not None:
        files["base_config.json"] = json.dumps(trained.base_config, indent=2) + "\n"
    files["config.json"] = json.dumps(config_lib.to_dict(config), indent=2) + "\n"
    _write(directory, files)


def _write(directory: Path, files: Mapping[str, str | bytes]) -> None:
    """Files by name and in their order, by the first process."""

    def write():
        for name, content in files.items():
            write_atomic(directory / name, content)

    distributed.first(write)


def merged(trained: Trained) -> tuple[Config, Params]:
    """The model with LoRA of main rows folded in.

    Of the shared mode it then counts as fully trained, of the detached mode as streams that were
    trained in the lossless mode over the fine-tuned weights.
    """
    config, params = trained.config, trained.params
    vocab_size = make_model(config, trained.tokenizer).config.vocab_size
    model = dataclasses.replace(config.model, vocab_size=vocab_size)
    config = dataclasses.replace(config, model=model)
    params = lora.merge_lora(params, config.adaptation)
    return dataclasses.replace(config, adaptation=lora.merged_adaptation(config.adaptation)), params


def write_adapter(directory: Path, trained: Trained, dtype: str) -> None:
    """What was trained, without the base.

    Raises:
      UserError: all weights were trained.
    """
    del dtype
    if trained.config.adaptation.mode == "full":
        raise UserError(
            "this run trained all weights, so there is no adapter; use --format hf or orbax"
        )
    addition = adapter.Addition(trained.config, trained.trainable, fingerprint(trained.frozen))
    distributed.first(lambda: trained.tokenizer.save(directory))
    adapter.write_addition(directory, addition, trained.family)

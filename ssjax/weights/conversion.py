"""A Hugging Face model as a model directory of ours: config.json, tokenizer, params/ and origin."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ssjax import config as config_lib
from ssjax.data.tokenizers.tokenizer import open_tokenizer
from ssjax.files.reading import to_json
from ssjax.files.writing import new_directory, write_atomic
from ssjax.models.parameters import count, fingerprint
from ssjax.weights import checkpoint, huggingface
from ssjax.weights.base import keep_origin
from ssjax.weights.load import untouched_config


def convert(name: str, target: str, dtype: str, tokenizer_from: str = "") -> dict[str, Any]:
    """Reads a model and writes it anew.

    Args:
      name: its directory, a GGUF file, or a hub id.
      target: the directory to write; must be new.
      dtype: of the written weights, "float32" or "bfloat16".
      tokenizer_from: a directory with the tokenizer; empty: where the weights are.

    Returns:
      What was read and written, as plain values.

    Raises:
      UserError: no model of a known family, or the target is there already.
    """
    with new_directory(Path(target)) as directory:
        source = huggingface.open_source(name)
        model = source.model_config(dtype)
        tokenizer = open_tokenizer(tokenizer_from or source.directory)
        config = untouched_config(dataclasses.replace(model, pretrained=target), tokenizer)
        num_stream_layers = config.streams.num_stream_layers
        params = huggingface.read_params(source, model, num_stream_layers, jnp.dtype(dtype))
        checkpoint.save_model(directory / "params", params)
        tokenizer.save(directory)
        write_atomic(directory / "base_config.json", to_json(dict(source.values)))
        write_atomic(directory / "config.json", to_json(config_lib.to_dict(config)))
        digest = fingerprint(params)
        keep_origin(directory, source.name, source.revision, digest)
    return {
        "source": source.name,
        "revision": source.revision,
        "fingerprint": digest,
        "target": target,
        "family": source.family.name,
        "parameters": count(params),
        "layers": model.num_layers,
        "width": model.embed_dim,
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "vocabulary": model.vocab_size,
        "tokenizer_ids": tokenizer.vocab_size,
        "stored_dtype": source.stored_dtype,
        "dtype": dtype,
    }

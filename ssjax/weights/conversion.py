"""A Hugging Face model as a model directory of ours: config.json, tokenizer, params/ and origin."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from ssjax import config as config_lib
from ssjax.data.tokenizers.tokenizer import open_tokenizer
from ssjax.files.reading import to_json
from ssjax.files.writing import write_atomic
from ssjax.models.parameters import count, fingerprint
from ssjax.parallel import distributed
from ssjax.parallel.shared_directory import new_directory
from ssjax.weights import checkpoint, huggingface
from ssjax.weights.base import keep_origin
from ssjax.weights.load import untouched_config


def convert(
    name: str, target: str, dtype: str, tokenizer_from: str = "", mesh: Mesh | None = None
) -> dict[str, Any]:
    """Reads a model and writes it anew; to be called by all processes.

    Args:
      name: its directory, a GGUF file, or a hub id.
      target: the directory to write; must be new.
      dtype: of the written weights, "float32" or "bfloat16".
      tokenizer_from: a directory with the tokenizer; empty: where the weights are.
      mesh: of all processes; each device reads and writes its own slices. None: the first device.

    Returns:
      What was read and written, as plain values.

    Raises:
      UserError: no model of a known family, or the target is there already.
    """
    with new_directory(target) as directory:
        source = huggingface.open_source(name)
        model = source.model_config(dtype)
        tokenizer = open_tokenizer(tokenizer_from or source.directory)
        config = untouched_config(dataclasses.replace(model, pretrained=target), tokenizer)
        num_stream_layers = config.streams.num_stream_layers
        params = huggingface.read_params(source, model, num_stream_layers, jnp.dtype(dtype), mesh)
        checkpoint.save_model(directory / "params", params)
        digest = fingerprint(params)

        def write_rest():
            tokenizer.save(directory)
            write_atomic(directory / "base_config.json", to_json(dict(source.values)))
            keep_origin(directory, source.name, source.revision, digest)
            write_atomic(directory / "config.json", to_json(config_lib.to_dict(config)))

        distributed.first(write_rest)
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

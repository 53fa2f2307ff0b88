"""Reads a Hugging Face model and writes it as a model directory of ours.

    python -m ssjax.convert --source DIR_OR_HUB_ID --target DIR

The target holds config.json, base_config.json (Hugging Face's), base.json (name, revision and
digest of the source), the tokenizer files and params/ (Orbax). Give it to
`--config.model.pretrained`, or decode with it:

    python -m ssjax.generate --workdir DIR --prompt "Once upon a time"
"""

import dataclasses

import jax.numpy as jnp
from absl import flags

from ssjax import config as config_lib
from ssjax.cli import command_line, options, start
from ssjax.data.tokenizers.tokenizer import open_tokenizer
from ssjax.errors import UserError
from ssjax.files.reading import to_json
from ssjax.files.writing import new_directory, write_atomic
from ssjax.models.parameters import count, fingerprint
from ssjax.weights import checkpoint, huggingface
from ssjax.weights.base import keep_origin, title
from ssjax.weights.load import untouched_config

_SOURCE = command_line.require(flags.DEFINE_string("source", None, "Model directory or hub id."))
_TARGET = options.define_output("target", "Directory to write; must be new.", directory=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the written weights.")
_JSON = options.define_output("json", "Also write the result to this file.")


def main() -> int:
    """Converts the model of the command line; returns the exit code."""
    if not _TARGET.value:
        raise UserError("--target is missing: the directory to write")
    with new_directory(_TARGET.value) as target:
        source = huggingface.open_source(_SOURCE.value)
        model = source.model_config(_DTYPE.value)
        tokenizer = open_tokenizer(source.directory)
        config = untouched_config(dataclasses.replace(model, pretrained=_TARGET.value), tokenizer)
        params = huggingface.read_params(
            source, model, config.streams.num_stream_layers, jnp.dtype(_DTYPE.value)
        )
        checkpoint.save_model(target / "params", params)
        tokenizer.save(target)
        write_atomic(target / "base_config.json", to_json(dict(source.values)))
        write_atomic(target / "config.json", to_json(config_lib.to_dict(config)))
        digest = fingerprint(params)
        keep_origin(target, source.name, source.revision, digest)
    result = {
        "source": source.name,
        "revision": source.revision,
        "fingerprint": digest,
        "target": _TARGET.value,
        "family": source.family.name,
        "parameters": count(params),
        "layers": model.num_layers,
        "width": model.embed_dim,
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "vocabulary": model.vocab_size,
        "tokenizer_ids": tokenizer.vocab_size,
        "stored_dtype": source.stored_dtype,
        "dtype": _DTYPE.value,
    }
    options.write_json(_JSON.value, result)
    print(
        f"{result['family']}: {result['parameters']:,} parameters, {model.num_layers} layers of "
        f"width {model.embed_dim}, {model.num_heads} heads ({model.num_kv_heads} for keys and "
        f"values), vocabulary {model.vocab_size:,} (tokenizer {tokenizer.vocab_size:,}); "
        f"{source.stored_dtype} -> {_DTYPE.value}; {title(source.name, source.revision)} with "
        f"digest {digest} written to {_TARGET.value}"
    )
    return 0


if __name__ == "__main__":
    start.run(main)

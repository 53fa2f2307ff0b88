"""Reads a Hugging Face model or a GGUF file and writes it as a model directory of ours.

    python -m ssjax.convert --source DIR_OR_HUB_ID_OR_FILE.gguf --target DIR

With --mesh every device reads and writes its own slices, on every host with --distributed.

The target holds config.json, base_config.json (Hugging Face's), base.json (name, revision and
digest of the source), the tokenizer files and params/ (Orbax). Give it to
`--config.model.pretrained`, or decode with it:

    python -m ssjax.generate --workdir DIR --prompt "Once upon a time"
"""

from absl import flags

from ssjax.cli import command_line, model_flags, options, start
from ssjax.errors import UserError
from ssjax.parallel import program_cache
from ssjax.weights.base import title
from ssjax.weights.conversion import convert

_SOURCE = command_line.require(
    flags.DEFINE_string("source", None, "Model directory, GGUF file or hub id.")
)
_TARGET = options.define_output("target", "Directory to write; must be new.", directory=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the written weights.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Directory with the tokenizer; empty: that of the source."
)
_DEVICES = model_flags.define_device_flags()
_JSON = options.define_output("json", "Also write the result to this file.")


def main() -> int:
    """Converts the model of the command line; returns the exit code."""
    if not _TARGET.value:
        raise UserError("--target is missing: the directory to write")
    _DEVICES.join()
    program_cache.keep()
    result = convert(_SOURCE.value, _TARGET.value, _DTYPE.value, _TOKENIZER.value, _DEVICES.mesh)
    options.write_json(_JSON.value, result)
    print(
        "{family}: {parameters:,} parameters, {layers} layers of width {width}, {heads} heads "
        "({kv_heads} for keys and values), vocabulary {vocabulary:,} (tokenizer "
        "{tokenizer_ids:,}); {stored_dtype} -> {dtype}; ".format(**result)
        + f"{title(result['source'], result['revision'])} with digest {result['fingerprint']} "
        f"written to {_TARGET.value}"
    )
    return 0


if __name__ == "__main__":
    start.run(main)

"""Writes a trained model in a form that other tools read.

    python -m ssjax.export --workdir RUN --format hf --target DIR
        safetensors, config.json and tokenizer for transformers, vLLM and others, with all that
        they need to begin a prompt and to end an output as the run does: tokenizer.json is made
        where there was none, and ids stand in config.json and generation_config.json. LoRA of
        main rows (modes shared and detached) is folded into the weights; lossless runs keep the
        base weights as they are.
        What only ssjax can run (streams) lies beside it in streams.safetensors.
    python -m ssjax.export --workdir RUN --format orbax --target DIR
        config.json, tokenizer and params/, an Orbax directory with nothing but the parameters.
    python -m ssjax.export --workdir RUN --format adapter --target DIR
        what the run adds to its base: LoRA in PEFT's form where that is possible, and
        streams.safetensors. Decode with it: python -m ssjax.generate --workdir BASE --adapter DIR

Each of the three can be decoded by ssjax as if it were the run, and gives equal logits.
"""

from absl import flags

from ssjax.cli import command_line, model_flags, options, start
from ssjax.files import places
from ssjax.parallel.shared_directory import new_directory
from ssjax.weights import exported

_WRITERS = {
    "hf": exported.write_hf,
    "orbax": exported.write_orbax,
    "adapter": exported.write_adapter,
}
_MODEL = model_flags.define_model_flags(adapter=False, int8=False)
_FORMAT = command_line.require(flags.DEFINE_enum("format", None, list(_WRITERS), "See above."))
_TARGET = options.define_output(
    "target", "Directory to write; default: RUN/export/FORMAT.", directory=True
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of hf weights; default: the compute dtype."
)


def main() -> int:
    """Exports the run of the command line; returns the exit code."""
    trained = _MODEL.read()
    target = places.of(_TARGET.value or places.of(_MODEL.workdir) / "export" / _FORMAT.value)
    write = _WRITERS[_FORMAT.value]
    with new_directory(target) as directory:
        write(directory, trained, _DTYPE.value or trained.config.model.dtype)
    print(f"{_FORMAT.value}: step {trained.step} of {_MODEL.workdir}, written to {target}")
    return 0


if __name__ == "__main__":
    start.run(main)

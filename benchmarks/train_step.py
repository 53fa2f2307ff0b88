"""What the streams cost in training: a step with them over the same step without.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --json benchmarks/results/train_step.json
    python benchmarks/train_step.py --streams 6

Both steps are the ones that `ssjax.train` compiles, on one device, with the same batch, model
and optimizer; they run in turn, compilation excluded. Time is the median of the ratios of
neighbouring steps, memory what the compiler reports: arguments, results and temporaries. The
shape is that of DialogSum: prompts of 256 tokens and targets of 48, 12 layers, 4 of them with the
streams.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
from absl import flags

from ssjax.cli import options, start
from ssjax.config import Config, ModelConfig, StreamsConfig
from ssjax.models.transformer import Transformer, init_params
from ssjax.parallel import partitioning
from ssjax.training.losses import Batch
from ssjax.training.programs import make_train_programs

_WIDTH = flags.DEFINE_integer("width", 512, "Model width; a multiple of 64.")
_VOCAB = flags.DEFINE_integer("vocab", 4096, "Vocabulary.")
_BATCH = flags.DEFINE_integer("batch", 4, "Sequences a step.")
_PROMPT = flags.DEFINE_integer("prompt", 256, "Prompt tokens.")
_TARGET = flags.DEFINE_integer("target", 48, "Target tokens.")
_STREAMS = flags.DEFINE_integer("streams", 4, "Number of streams.")
_STEPS = flags.DEFINE_integer("steps", 7, "Timed pairs of steps.")
_REMAT = flags.DEFINE_string("remat", "none", "none, products or full.")
_JSON = flags.DEFINE_string("json", "", "Also write the result to this file.")


def make_config(num_streams: int) -> Config:
    """The config of either step."""
    base, width = Config(), _WIDTH.value
    return dataclasses.replace(
        base,
        model=ModelConfig(
            vocab_size=_VOCAB.value,
            embed_dim=width,
            num_layers=12,
            num_heads=width // 64,
            num_kv_heads=width // 64,
            head_dim=64,
            mlp_dim=width * 11 // 4,
        ),
        streams=StreamsConfig(num_streams=num_streams, num_stream_layers=4),
        data=dataclasses.replace(
            base.data,
            batch_size=_BATCH.value,
            max_prompt_length=_PROMPT.value,
            max_target_length=_TARGET.value,
        ),
        train=dataclasses.replace(base.train, remat=_REMAT.value),
    )


def compile_step(config: Config):
    """(the compiled step, a state for it, a batch, bytes that it needs)."""
    mesh = partitioning.one_device()
    model = Transformer(config.model, config.streams, True, config.adaptation)
    programs = make_train_programs(config, model, mesh)
    rows, num_tokens = _BATCH.value, _PROMPT.value + _TARGET.value
    tokens = np.random.default_rng(0).integers(0, _VOCAB.value, (rows, num_tokens))
    is_target = np.broadcast_to(np.arange(num_tokens) >= _PROMPT.value, tokens.shape)
    with jax.set_mesh(mesh):
        batch = Batch(tokens.astype(np.int32), np.ones_like(tokens, np.int32), is_target)
        batch = partitioning.global_batch(batch, mesh, rows)
        state = programs.init(jax.jit(lambda: init_params(model, 0))())
        compiled = programs.train.lower(state, {}, batch).compile()
    memory = compiled.memory_analysis()
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return compiled, state, batch, needed


def main() -> int:
    """Measures both steps; returns the exit code."""
    numbers = {"plain": 0, "streams": _STREAMS.value}
    steps = {name: list(compile_step(make_config(n))) for name, n in numbers.items()}
    seconds = {name: [] for name in steps}
    for _ in range(1 + _STEPS.value):  # the first warms up
        for name, (compiled, state, batch, _) in steps.items():
            began = time.perf_counter()
            steps[name][1], metrics = compiled(state, {}, batch)
            jax.block_until_ready(metrics.loss)
            seconds[name].append(time.perf_counter() - began)
    pairs = list(zip(seconds["streams"][1:], seconds["plain"][1:], strict=True))
    needed = {name: step[3] for name, step in steps.items()}
    result = {
        "device": jax.devices()[0].device_kind,
        "width": _WIDTH.value,
        "vocab": _VOCAB.value,
        "batch": _BATCH.value,
        "prompt": _PROMPT.value,
        "target": _TARGET.value,
        "remat": _REMAT.value,
        "streams": _STREAMS.value,
        "seconds": {name: statistics.median(times[1:]) for name, times in seconds.items()},
        "time_ratio": statistics.median(a / b for a, b in pairs),
        "bytes": needed,
        "memory_ratio": needed["streams"] / needed["plain"],
    }
    for name in steps:
        print(f"{name:8s} {result['seconds'][name]:8.3f} s {needed[name] / 2**20:10,.0f} MiB")
    print(f"ratio    {result['time_ratio']:8.3f}   {result['memory_ratio']:10.3f}")
    options.write_json(_JSON.value, result)
    return 0


if __name__ == "__main__":
    start.run(main)

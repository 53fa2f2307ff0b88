"""What one decode pass costs by number of draft nodes, on this device.

    python benchmarks/pass_cost.py                     (model shapes below, random weights)
    python benchmarks/pass_cost.py --workdir RUN       (the model of a run)

A pass is everything the loop does: trunk and stream layers, head, verification, cache, streams
and the next draft. "plain" is one node without streams, our fastest plain decoder. The ratio
to plain is the number of tokens per call from which speculation pays. Compilation excluded;
the median of repeated loops of --passes passes at a prompt of --prompt tokens.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from ssjax import cli
from ssjax.config import ModelConfig, StreamsConfig
from ssjax.decoding import loop
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.models.parameters import count
from ssjax.models.transformer import Transformer, init_params
from ssjax.run import load_run

_WORKDIR = flags.DEFINE_string("workdir", "", "Measure the model of this run.")
_NODES = flags.DEFINE_list("nodes", "1,2,4,8,16,32", "Draft nodes, the root not counted.")
_PASSES = flags.DEFINE_integer("passes", 40, "Passes per timed loop.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed loops per setting.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Prompt tokens.")
_JSON = flags.DEFINE_string("json", "", "Also write the table to this file.")

SHAPES = {
    "width 128": ModelConfig(
        vocab_size=1536, embed_dim=128, num_layers=4, num_heads=4, head_dim=32, mlp_dim=384
    ),
    "width 256": ModelConfig(
        vocab_size=4096, embed_dim=256, num_layers=6, num_heads=8, head_dim=32, mlp_dim=704
    ),
    "width 512": ModelConfig(
        vocab_size=8192, embed_dim=512, num_layers=8, num_heads=8, head_dim=64, mlp_dim=1408
    ),
}


def seconds_per_pass(model, params, drafter, deferred):
    """Median seconds of one pass of one row."""
    passes = _PASSES.value
    spec = loop.DecodeSpec(
        capacity=_PROMPT.value + 1 + passes * (drafter.max_depth + 1),
        eos_ids=(-1,),
        pad_id=0,
        sampling=Sampling(),
        deferred=deferred,
    )
    prompts = jnp.ones((1, _PROMPT.value), jnp.int32)
    one = jnp.ones(1, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 1)
    step = functools.partial(loop.decode_step, model, drafter=drafter, spec=spec)

    @jax.jit
    def prefill(params):
        return loop.prefill(
            model, params, drafter, spec, prompts, one * _PROMPT.value, one * spec.capacity, keys
        )

    @jax.jit
    def run(params, state):
        return jax.lax.fori_loop(0, passes, lambda _, s: step(params, state=s), state)

    state = prefill(params)
    jax.block_until_ready(run(params, state))
    times = []
    for _ in range(_REPEATS.value):
        began = time.perf_counter()
        jax.block_until_ready(run(params, state))
        times.append((time.perf_counter() - began) / passes)
    return statistics.median(times)


def measure(name, model, params):
    """Prints and returns the rows of one model."""
    streams = model.streams.num_streams
    plain = seconds_per_pass(model, params, PlainDrafter(), deferred=True)
    print(f"\n{name}: {count(params):,} parameters, {streams} streams, {jax.devices()[0]}")
    print(f"{'draft nodes':>12} {'deferred ms':>12} {'ratio':>6} {'fused ms':>10} {'ratio':>6}")
    print(f"{'plain':>12} {1e3 * plain:12.3f} {1:6.2f} {'':>10} {'':>6}")
    rows = [{"nodes": 0, "deferred": plain, "fused": plain}]
    for nodes in map(int, _NODES.value):
        drafter = BestFirstDrafter(nodes, streams)
        row = {"nodes": nodes}
        for order in ("deferred", "fused"):
            row[order] = seconds_per_pass(model, params, drafter, order == "deferred")
        print(
            f"{nodes:12d} {1e3 * row['deferred']:12.3f} {row['deferred'] / plain:6.2f} "
            f"{1e3 * row['fused']:10.3f} {row['fused'] / plain:6.2f}"
        )
        rows.append(row)
    return {"model": name, "parameters": count(params), "seconds_per_pass": rows}


def main():
    if _WORKDIR.value:
        run = load_run(_WORKDIR.value)
        results = [measure(_WORKDIR.value, run.decoder.model, run.decoder.params)]
    else:
        results = []
        for name, config in SHAPES.items():
            model = Transformer(config, StreamsConfig(4, 2), scan=True)
            params = jax.jit(lambda m=model: init_params(m, 0))()
            decoder = Decoder(model, params, eos_ids=(0,), pad_id=0, prompt_buckets=(64,))
            results.append(measure(name, decoder.model, decoder.params))
    cli.write_json(_JSON.value, results)


if __name__ == "__main__":
    cli.run(main)

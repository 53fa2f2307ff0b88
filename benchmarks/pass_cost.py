"""What one decode pass costs by number of draft nodes, on this device.

    python benchmarks/pass_cost.py                     (model shapes below, random weights)
    python benchmarks/pass_cost.py --workdir RUN       (the model of a run)

See `ssjax/evaluation/pass_time.py` for what is timed. "plain" is one node without streams, our
fastest plain decoder. The ratio to plain is the number of tokens per call from which
speculation pays. `python -m ssjax.calibrate` joins it with what drafts are accepted.
"""

import jax
from absl import flags

from ssjax.cli import options, start
from ssjax.config import ModelConfig, StreamsConfig
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, Way
from ssjax.evaluation.pass_time import PassShape, seconds_per_pass
from ssjax.models.parameters import count
from ssjax.models.transformer import Transformer, init_params
from ssjax.run import load

_WORKDIR = flags.DEFINE_string("workdir", "", "Measure the model of this run.")
_NODES = flags.DEFINE_list("nodes", "1,2,4,8,16,32", "Draft nodes, the root not counted.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed loops per setting.")
_BATCH = flags.DEFINE_integer("batch_size", 1, "Rows of a pass.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Prompt tokens.")
_NEW = flags.DEFINE_integer("max_new_tokens", 64, "Tokens that the cache has room for after it.")
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


def measure(name, decoder):
    """Prints and returns the rows of one model."""
    streams, nodes = decoder.model.streams.num_streams, list(map(int, _NODES.value))
    drafters = [BestFirstDrafter(n, streams) for n in nodes]
    ways = [Way(PlainDrafter(), True)]
    ways += [Way(drafter, deferred) for drafter in drafters for deferred in (True, False)]
    shape = PassShape(_BATCH.value, _PROMPT.value, _NEW.value)
    plain, *drafted = seconds_per_pass(decoder, ways, shape, repeats=_REPEATS.value)
    rows = [{"nodes": 0, "deferred": plain, "fused": plain}]
    for n, deferred, fused in zip(nodes, drafted[::2], drafted[1::2], strict=True):
        rows.append({"nodes": n, "deferred": deferred, "fused": fused})
    size = count(decoder.params)
    print(f"\n{name}: {size:,} parameters, {streams} streams, {jax.devices()[0]}")
    print(f"{'draft nodes':>12} {'deferred ms':>12} {'ratio':>6} {'fused ms':>10} {'ratio':>6}")
    print(f"{'plain':>12} {1e3 * plain:12.3f} {1:6.2f} {'':>10} {'':>6}")
    for row in rows[1:]:
        print(
            f"{row['nodes']:12d} {1e3 * row['deferred']:12.3f} {row['deferred'] / plain:6.2f} "
            f"{1e3 * row['fused']:10.3f} {row['fused'] / plain:6.2f}"
        )
    return {"model": name, "parameters": size, "seconds_per_pass": rows}


def main():
    if _WORKDIR.value:
        results = [measure(_WORKDIR.value, load(_WORKDIR.value).decoder)]
    else:
        results = []
        for name, config in SHAPES.items():
            model = Transformer(config, StreamsConfig(4, 2), scan=True)
            params = jax.jit(lambda m=model: init_params(m, 0))()
            decoder = Decoder(
                model, params, eos_ids=(0,), pad_id=0, prompt_buckets=(_PROMPT.value,)
            )
            results.append(measure(name, decoder))
    options.write_json(_JSON.value, results)


if __name__ == "__main__":
    start.run(main)

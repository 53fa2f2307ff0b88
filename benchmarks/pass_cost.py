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
    orders = decoder.model.streams.orders
    ways = [Way(PlainDrafter(), orders[0])]
    ways += [Way(drafter, deferred) for drafter in drafters for deferred in orders]
    shape = PassShape(_BATCH.value, _PROMPT.value, _NEW.value)
    plain, *drafted = seconds_per_pass(decoder, ways, shape, repeats=_REPEATS.value)
    names = ["deferred" if deferred else "fused" for deferred in orders]
    rows = [{"nodes": 0} | dict.fromkeys(names, plain)]
    for place, n in enumerate(nodes):
        own = drafted[place * len(orders) : (place + 1) * len(orders)]
        rows.append({"nodes": n} | dict(zip(names, own, strict=True)))
    size = count(decoder.params)
    print(f"\n{name}: {size:,} parameters, {streams} streams, {jax.devices()[0]}")
    heads = "".join(f"{f'{name} ms':>13} {'ratio':>6}" for name in names)
    print(f"{'draft nodes':>12}{heads}")
    for row in rows:
        cells = "".join(f"{1e3 * row[name]:13.3f} {row[name] / plain:6.2f}" for name in names)
        print(f"{row['nodes'] or 'plain':>12}{cells}")
    return {"model": name, "parameters": size, "seconds_per_pass": rows}


def main():
    if _WORKDIR.value:
        results = [measure(_WORKDIR.value, load(_WORKDIR.value).decoder)]
    else:
        results = []
        for name, config in SHAPES.items():
            # Both orders: the paper's streams. What ours add: benchmarks/correction_cost.py.
            paper = StreamsConfig(4, 2, parent_rank=0, root_rank=0)
            model = Transformer(config, paper, scan=True)
            params = jax.jit(lambda m=model: init_params(m, 0))()
            decoder = Decoder(
                model, params, eos_ids=(0,), pad_id=0, prompt_buckets=(_PROMPT.value,)
            )
            results.append(measure(name, decoder))
    options.write_json(_JSON.value, results)


if __name__ == "__main__":
    start.run(main)

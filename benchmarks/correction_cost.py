"""What root, parent and more streams add to a decode pass, on this device.

    python benchmarks/correction_cost.py
    python benchmarks/correction_cost.py --json benchmarks/results/correction_cost.json

The same random weights of about 100M parameters, streams as in the paper, and told the root, the
parent or both (`streams.root_rank`, `streams.parent_rank`, 64 each), 4 of them, and with both 6 and
8. All passes are timed in turn, see `ssjax/evaluation/pass_time.py`; ratios are to the paper's
streams with the same draft.
"""

import dataclasses

import jax
from absl import flags

from ssjax.cli import options, start
from ssjax.config import ModelConfig, StreamsConfig
from ssjax.decoding import loop
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, Way
from ssjax.evaluation.pass_time import PassShape, seconds_per_pass
from ssjax.models.parameters import count
from ssjax.models.transformer import Transformer, init_params

_NODES = flags.DEFINE_list("nodes", "8,16", "Draft nodes, the root not counted.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed loops per setting.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Prompt tokens.")
_JSON = flags.DEFINE_string("json", "", "Also write the result to this file.")

CONFIG = ModelConfig(
    vocab_size=16384,
    embed_dim=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    mlp_dim=2048,
)
KINDS = {  # streams, and what is changed of them
    "paper": (4, {"parent_rank": 0, "root_rank": 0}),
    "root": (4, {"parent_rank": 0}),
    "parent": (4, {"root_rank": 0}),
    "both": (4, {}),
    "both, 6": (6, {}),
    "both, 8": (8, {}),
}


def step_of(streams: StreamsConfig):
    """A pass of the same weights with other streams; leaves that these lack are not read."""

    def step(model, *arguments):
        return loop.decode_step(model.clone(streams=streams), *arguments)

    return step


def main() -> int:
    """Times all kinds; returns the exit code."""
    streams = StreamsConfig(num_streams=8, num_stream_layers=2)
    model = Transformer(CONFIG, streams, scan=True)
    params = jax.jit(lambda: init_params(model, 0))()
    decoder = Decoder(model, params, eos_ids=(0,), pad_id=0, prompt_buckets=(_PROMPT.value,))
    ways, steps, names = [Way(PlainDrafter(), True)], [loop.decode_step], [("plain", 0)]
    for nodes in map(int, _NODES.value):
        for kind, (number, changes) in KINDS.items():
            ways.append(Way(BestFirstDrafter(nodes, number), True))
            steps.append(step_of(dataclasses.replace(streams, **changes)))
            names.append((kind, nodes))
    shape = PassShape(1, _PROMPT.value, 64)
    found = seconds_per_pass(decoder, ways, shape, repeats=_REPEATS.value, steps=steps)
    seconds = dict(zip(names, found, strict=True))
    print(f"{count(decoder.params):,} parameters, {jax.devices()[0].device_kind}")
    print(f"{'nodes':>5} {'streams':>8} {'ms':>8} {'to paper':>9} {'to plain':>9}")
    rows = []
    for (kind, nodes), own in seconds.items():
        row = {"streams": kind, "nodes": nodes, "seconds": own}
        row["to_plain"] = own / seconds["plain", 0]
        row["to_paper"] = own / seconds["paper", nodes] if nodes else None
        rows.append(row)
        ratio = f"{row['to_paper']:9.3f}" if nodes else " " * 9
        print(f"{nodes:5d} {kind:>8} {1e3 * own:8.2f} {ratio} {row['to_plain']:9.2f}")
    options.write_json(_JSON.value, {"parameters": count(decoder.params), "rows": rows})
    return 0


if __name__ == "__main__":
    start.run(main)

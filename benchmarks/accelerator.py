"""What a decode pass costs on a GPU or TPU, on random Llama shapes in bfloat16.

    python benchmarks/accelerator.py --models 1b,7b --markdown docs/gpu.md --json docs/gpu.json
    python benchmarks/accelerator.py --models tiny          (any machine, to see that it works)

1b is the shape of Llama 3.2 1B (2.5 GB), 7b that of Llama 2 7B (13.5 GB), each with 4 streams in
the top quarter of its layers. Weights are drawn on the device in bfloat16, one array at a time: by
calculation 5 GB and 23 GB at the most, the random bits of the last array among them.

    pass          seconds by number of draft nodes, streams deferred and beside every node; see
                  ssjax/evaluation/pass_time.py
    passes        the same in plain passes. Speedup is tokens per call divided by it: as many
                  tokens per call as this pay for themselves
    bound         plain tokens per second if a pass took as long as reading the weights and the
                  cache once at the published bandwidth of the device
"""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from ssjax import messages
from ssjax.cli import options, start
from ssjax.config import ModelConfig, StreamsConfig
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, Way
from ssjax.errors import UserError
from ssjax.evaluation.markdown import table
from ssjax.evaluation.pass_time import PassShape, seconds_per_pass
from ssjax.files.writing import write_atomic
from ssjax.models.parameters import Params, count
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.planning.topologies import CHIPS

_MODELS = flags.DEFINE_list("models", "1b,7b", "Which of the shapes.")
_NODES = flags.DEFINE_list("nodes", "1,3,7,15,31,63", "Draft nodes, the root not counted.")
_BATCHES = flags.DEFINE_list("batch_sizes", "1,8", "Rows of a pass.")
_PROMPT = flags.DEFINE_integer("prompt", 512, "Prompt tokens.")
_NEW = flags.DEFINE_integer("max_new_tokens", 128, "Tokens that the cache has room for after it.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed loops per setting.")
_JSON = flags.DEFINE_string("json", "", "Also write the result to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", "", "Also write the tables to this file.")

SHAPES = {
    "1b": ModelConfig(
        vocab_size=128256,
        embed_dim=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        mlp_dim=8192,
        rope_theta=500000.0,
    ),
    "7b": ModelConfig(
        vocab_size=32000,
        embed_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11008,
        tie_embeddings=False,
    ),
    "tiny": ModelConfig(vocab_size=512, embed_dim=64, num_layers=4, num_heads=4, head_dim=16),
}
NUM_STREAMS = 4

# Published bandwidths, bytes per second, by a part of JAX's device_kind (NVIDIA's data sheets; of
# TPUs those of ssjax/planning/topologies.py).
BANDWIDTH = {
    "A100-SXM4-80GB": 2039e9,
    "A100-SXM4-40GB": 1555e9,
    "H100 80GB HBM3": 3350e9,
    "H200": 4800e9,
    "NVIDIA L4": 300e9,
    "TPU v4": CHIPS["v4"].bandwidth,
    "TPU v5 lite": CHIPS["v5e"].bandwidth,
    "TPU v5p": CHIPS["v5p"].bandwidth,
    "TPU v6 lite": CHIPS["v6e"].bandwidth,
}


def main() -> int:
    """Measures every model; returns the exit code."""
    unknown = [name for name in _MODELS.value if name not in SHAPES]
    if unknown:
        raise UserError(f"--models: {unknown[0]!r} is none of {', '.join(SHAPES)}")
    results = []
    for name in _MODELS.value:
        decoder = make_decoder(SHAPES[name])
        for batch_size in map(int, _BATCHES.value):
            results.append({"model": name, **measure(decoder, batch_size)})
            print(markdown_of(results[-1]), flush=True)
    device = jax.devices()[0].device_kind
    result = {"device": device, "prompt": _PROMPT.value, "jax": jax.__version__, "rows": results}
    options.write_json(_JSON.value, result)
    if _MARKDOWN.value:
        title = (
            f"# Passes on {device}\n\n`python benchmarks/accelerator.py`, JAX {jax.__version__}, "
        )
        title += f"bfloat16, prompts of {_PROMPT.value} tokens, random weights; what the columns "
        title += "mean stands in the script.\n\n"
        write_atomic(Path(_MARKDOWN.value), title + "\n".join(map(markdown_of, results)))
    return 0


def make_decoder(config: ModelConfig) -> Decoder:
    """A decoder with random weights that were never anywhere but on the device."""
    config = ModelConfig(**{**vars(config), "dtype": "bfloat16"})
    # Without a root: both orders are timed.
    streams = StreamsConfig(NUM_STREAMS, num_stream_layers=config.num_layers // 4, root_rank=0)
    model = Transformer(config, streams, scan=True)
    # An end of sequence outside of the vocabulary: no row ends by itself.
    return Decoder(
        model,
        random_params(model),
        eos_ids=(config.vocab_size,),
        pad_id=0,
        prompt_buckets=(_PROMPT.value,),
    )


def random_params(model: Transformer) -> Params:
    """bfloat16 weights in the scanned form: norms of one, the rest normal and small."""

    def make(path, leaf):
        names = jax.tree_util.keystr(path)
        if "norm" in names:
            return jnp.ones(leaf.shape, jnp.bfloat16)
        key = jax.random.key(zlib.crc32(names.encode()))
        return _normal(key, leaf.shape)

    return jax.tree_util.tree_map_with_path(make, abstract_params(model))


def _normal(key, shape):
    return jax.jit(lambda key: 0.02 * jax.random.normal(key, shape, jnp.bfloat16))(key)


def measure(decoder: Decoder, batch_size: int) -> dict:
    """Seconds of a pass by draft nodes, and plain decoding beside its bound."""
    nodes = [int(n) for n in _NODES.value]
    ways = [Way(PlainDrafter(), True)]
    ways += [
        Way(BestFirstDrafter(n, NUM_STREAMS), deferred) for n in nodes for deferred in (True, False)
    ]
    plain, *drafted = seconds_per_pass(
        decoder,
        ways,
        PassShape(batch_size, _PROMPT.value, _NEW.value),
        repeats=_REPEATS.value,
        on_compiled=lambda number: messages.say(f"compiled {number} of {len(ways)}"),
    )
    read = bytes_read(decoder, batch_size)
    bound = bandwidth_of(jax.devices()[0].device_kind)
    return {
        "parameters": count(decoder.params),
        "batch_size": batch_size,
        "plain_ms": 1e3 * plain,
        "plain_tokens_per_second": batch_size / plain,
        "bytes_read": read,
        "bound_tokens_per_second": bound and batch_size * bound / read,
        "passes": [
            {"nodes": n, "deferred_ms": 1e3 * deferred, "beside_ms": 1e3 * beside}
            for n, deferred, beside in zip(nodes, drafted[::2], drafted[1::2], strict=True)
        ],
    }


def bytes_read(decoder: Decoder, batch_size: int) -> int:
    """Weights of a plain pass, and all slots of the cache, once."""
    config = decoder.model.config
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(decoder.params))
    if not config.tie_embeddings:
        weights -= decoder.params["embedder"].nbytes  # of which a pass reads a row
    slots = decoder.capacity(_PROMPT.value, _NEW.value)
    width = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return weights + batch_size * slots * width * jnp.dtype(config.dtype).itemsize


def bandwidth_of(device_kind: str) -> float | None:
    """Published bytes per second of a device; None for one that is not in the table."""
    return next((rate for name, rate in BANDWIDTH.items() if name in device_kind), None)


def markdown_of(row: dict) -> str:
    """The table of one model and batch size."""
    bound = row["bound_tokens_per_second"]
    of_bound = "bound not known for this device"
    if bound:
        share = row["plain_tokens_per_second"] / bound
        of_bound = f"bound {bound:,.0f}, {100 * share:.0f} % of it reached"
    lines = [
        f"## {row['model']}: {row['parameters']:,} parameters, batch size {row['batch_size']}\n",
        f"Plain pass {row['plain_ms']:.2f} ms, {row['plain_tokens_per_second']:,.0f} tokens per "
        f"second ({of_bound}).\n",
    ]
    rows = []
    for each in row["passes"]:
        times = [each["deferred_ms"], each["beside_ms"]]
        cells = [form for t in times for form in (f"{t:.2f}", f"{t / row['plain_ms']:.2f}")]
        rows.append([str(each["nodes"]), *cells])
    heads = ["draft nodes", "deferred, ms", "passes", "beside every node, ms", "passes"]
    lines.append(table(heads, rows))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    start.run(main)

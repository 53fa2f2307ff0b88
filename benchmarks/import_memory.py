"""Peak memory of importing a Hugging Face model, against its own size and that of a shard.

    python benchmarks/import_memory.py --json benchmarks/results/import_memory.json

Writes a random Llama of more than 1 GB as sharded safetensors, then reads it in a process of its
own and asks the kernel for the largest resident size. What is promised: the model itself and at
most one shard beyond it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, MLP, LAYERS, VOCAB = 1536, 4096, 12, 16384
SHARD_BYTES = 200 * 10**6


def write_model(directory: Path, dtype: str) -> None:
    """A random model in shards, made one tensor at a time by the package's own writer."""
    import jax
    import jax.numpy as jnp

    from ssjax.config import ModelConfig, StreamsConfig
    from ssjax.models.transformer import Transformer, init_params
    from ssjax.weights import huggingface

    config = ModelConfig(
        vocab_size=VOCAB,
        embed_dim=WIDTH,
        num_layers=LAYERS,
        num_heads=12,
        num_kv_heads=12,
        head_dim=128,
        mlp_dim=MLP,
        tie_embeddings=False,
    )
    model = Transformer(config, StreamsConfig(0, 1), scan=True)
    params = jax.jit(lambda: init_params(model, 0))()
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
    huggingface._SHARD_BYTES = SHARD_BYTES
    huggingface.write_params(directory, config, params, huggingface.llama_config_json(config))


def import_model(directory: Path, dtype: str) -> dict:
    """Reads the model here and reports sizes; meant for a fresh process."""
    import jax
    import jax.numpy as jnp

    from ssjax.models.parameters import count
    from ssjax.weights import huggingface

    source = huggingface.open_source(directory)
    config = source.model_config("float32")
    jnp.zeros(1).block_until_ready()  # the runtime itself is not counted
    before = resident()
    params = huggingface.read_params(source, config, 2, jnp.dtype(dtype))
    jax.block_until_ready(params)
    return {
        "model_bytes": count(params) * jnp.dtype(dtype).itemsize,
        "before": before,
        "after": resident(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def resident() -> int:
    """Resident bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="")
    parser.add_argument("--write", nargs=2)
    parser.add_argument("--read", nargs=2)
    arguments = parser.parse_args()
    if arguments.write:
        write_model(Path(arguments.write[0]), arguments.write[1])
        return
    if arguments.read:
        print(json.dumps(import_model(Path(arguments.read[0]), arguments.read[1])))
        return
    results = []
    for stored, wanted in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16",) * 2):
        with tempfile.TemporaryDirectory() as directory:
            call("--write", directory, stored)
            sizes = [path.stat().st_size for path in Path(directory).glob("*.safetensors")]
            read = json.loads(call("--read", directory, wanted))
        beyond = read["peak"] - read["before"] - read["model_bytes"]
        result = {
            "stored": stored,
            "wanted": wanted,
            "model_bytes": read["model_bytes"],
            "files": len(sizes),
            "largest_shard_bytes": max(sizes),
            "peak_beyond_model_bytes": beyond,
            "peak_beyond_in_shards": beyond / max(sizes),
        }
        print(json.dumps(result))
        results.append(result)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


def call(*arguments: str) -> str:
    """This script again, in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()

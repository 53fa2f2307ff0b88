"""Plans the paper's fine-tunes, and larger ones, for TPU pods; writes docs/pods.md and .json.

    pip install -e ".[plan]"
    python benchmarks/pod_plans.py                 (an hour of compiling on 2 cores; restartable)

No TPU and no weights are needed: shapes stand below. Training divides everything over fsdp, and
heads too from 64 devices on; decoding divides heads and copies the rest, a row or more a copy.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import jax
from absl import flags

from ssjax import config as config_lib
from ssjax import messages
from ssjax.cli import start
from ssjax.config import MeshConfig
from ssjax.files.writing import write_atomic
from ssjax.parallel import partitioning
from ssjax.planning import plans
from ssjax.planning.experiments import resolve_shapes
from ssjax.planning.topologies import GIB, open_topology

_OUT = flags.DEFINE_string("out", "docs", "Directory of pods.md and pods.json.")
_ONLY = flags.DEFINE_string("only", "", "Plan this model alone.")

ROOT = Path(__file__).parents[1]
_PATIENCE = 1800  # seconds for a program; some meshes of tpu7x take libtpu 0.0.42 longer
TOPOLOGIES = ("v5e:4x4", "v5p:4x4x4", "v6e:16x16", "v5e:16x16", "v5p:8x8x8", "tpu7x:2x2x1")


def _llama(width, layers, heads, kv_heads, mlp, vocab):
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


# config.json of each model as far as shapes go, and how it is trained.
MODELS = {
    "OpenLLaMA-7B, LoRA": (_llama(4096, 32, 32, 32, 11008, 32000), "shared"),
    "70B Llama shape, LoRA": (_llama(8192, 80, 64, 8, 28672, 128256), "shared"),
    "OPT-1.3B, LoRA": (
        {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "hidden_size": 2048,
            "word_embed_proj_dim": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "ffn_dim": 8192,
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "tie_word_embeddings": True,
        },
        "shared",
    ),
    "Llama-3.1-8B, LoRA": (_llama(4096, 32, 32, 8, 14336, 128256), "shared"),
    "Llama-3.1-8B, full": (_llama(4096, 32, 32, 8, 14336, 128256), "full"),
}


def make_config(directory: Path, values: dict, mode: str, num_streams: int = 4):
    """The paper's DialogSum fine-tune of a model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    path = ROOT / "experiments" / "dialogsum.py"
    spec = importlib.util.spec_from_file_location("dialogsum", path)
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    c = experiment.get_config("openllama-7b")
    c.model.pretrained = str(directory)
    c.adaptation.mode = mode
    c.streams.num_stream_layers = values["num_hidden_layers"] // 2
    c.streams.num_streams = num_streams
    if not num_streams:
        c.streams.exit_rank = 0
    return config_lib.from_config_dict(c)


def meshes(num_devices: int, values: dict) -> tuple[MeshConfig, MeshConfig]:
    """Meshes of training and of decoding."""
    tensor = min(8, max(1, num_devices // 32))
    heads = 16 if values["hidden_size"] > 4096 else values.get("num_key_value_heads", 16)
    whole = min(num_devices, heads, 16)
    return (
        MeshConfig(data=1, fsdp=num_devices // tensor, tensor=tensor),
        MeshConfig(data=num_devices // whole, fsdp=1, tensor=whole),
    )


def plan(directory: Path, name: str, topology_name: str, num_streams: int, kind: str) -> dict:
    """One program of a row, or with kind "settings" what both have in common, as plain values."""
    values, mode = MODELS[name]
    topology = open_topology(topology_name)
    for_training, for_decoding = meshes(topology.num_devices, values)
    config = make_config(directory, values, mode, num_streams)
    data = dataclasses.replace(config.data, batch_size=max(32, for_training.fsdp))
    decode = dataclasses.replace(config.decode, batch_size=max(8, for_decoding.data))
    config = dataclasses.replace(config, data=data, decode=decode, mesh=for_training)
    config, model = resolve_shapes(config)
    mesh = partitioning.make_mesh(for_training, topology.devices)
    partitioning.check_shardable(config, mesh)
    hbm = topology.device.hbm
    if kind == "settings":
        return {
            "devices": topology.num_devices,
            "hbm": hbm,
            "batch_size": {"train": data.batch_size, "decode": decode.batch_size},
            "mesh": {
                "train": dataclasses.asdict(for_training),
                "decode": dataclasses.asdict(for_decoding),
            },
            "num_tokens": data.max_prompt_length + data.max_target_length,
        }
    if kind == "train":
        program = plans.plan_training(config, model, mesh, hbm)
    else:
        mesh = partitioning.make_mesh(for_decoding, topology.devices)
        program = plans.plan_decoding(config, model, mesh, hbm)
    values = dataclasses.asdict(program)
    if program.traffic:
        values["seconds"] = program.seconds(topology.device)
    if not program.fits:
        values["advice"] = plans.advice(program, config, hbm)
    return values


def plan_row(directory: Path, name: str, topology_name: str, num_streams: int) -> dict:
    """One row of the table. Each program is compiled in a child: a compiler may crash."""
    row = {"model": name, "topology": topology_name, "streams": num_streams}
    for kind in ("settings", "train", "decode") if num_streams else ("settings", "train"):
        found = directory / f"{kind}.json"
        child = os.fork()
        if child == 0:
            signal.alarm(_PATIENCE)
            found.write_text(json.dumps(plan(directory, name, topology_name, num_streams, kind)))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code > 0:
            raise SystemExit(code)
        if code < 0:
            late = -code == signal.SIGALRM
            error = f"not compiled in {_PATIENCE // 60} minutes" if late else "the compiler crashes"
            row[kind] = {"fits": False, "error": error}
        elif kind == "settings":
            row |= json.loads(found.read_text())
        else:
            row[kind] = json.loads(found.read_text())
    return row


def markdown(rows: list[dict], commit_free_header: str) -> str:
    """The document."""
    lines = [commit_free_header]
    for kind, title in (("train", "Train step"), ("decode", "Decode pass")):
        lines += [f"\n## {title}\n"]
        time_of = "step at least, ms" if kind == "train" else "pass at least, ms"
        rate = "tokens/s at most" if kind == "train" else "tokens/s at most, 1 a call"
        lines += [
            f"| model | topology | mesh | batch | fits | peak of HBM, GiB | {time_of} | bound by | "
            f"{rate} | collectives a device |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            if kind in row and row["streams"]:
                lines.append(_line(row, kind))
    with_streams = next((r for r in rows if _is_cost_pair(r, True)), None)
    without = next((r for r in rows if _is_cost_pair(r, False)), None)
    if with_streams and without:
        lines += ["\n## What the streams cost\n", _cost_of_method(with_streams, without)]
    return "\n".join(lines) + "\n"


def _is_cost_pair(row, streams):
    return (row["model"], row["topology"]) == ("OpenLLaMA-7B, LoRA", "v5e:4x4") and bool(
        row["streams"]
    ) == streams


def _cost_of_method(ours, plain):
    ours, plain = ours["train"], plain["train"]
    bound = [max(p["seconds"].values()) for p in (ours, plain)]
    return (
        "OpenLLaMA-7B with LoRA on v5e:4x4, 4 streams in 16 of 32 layers (the paper's v1 form), "
        "over the same step without streams, both compiled for TPU: operations "
        f"{ours['flops'] / plain['flops']:.2f}, memory traffic "
        f"{ours['traffic'] / plain['traffic']:.2f}, bound of the time "
        f"{bound[0] / bound[1]:.2f}, peak memory {ours['peak'] / plain['peak']:.2f}."
    )


def _line(row, kind):
    program, mesh = row[kind], row["mesh"][kind]
    written = " x ".join(str(mesh[axis]) for axis in partitioning.MESH_AXES)
    cells = [row["model"], row["topology"], written, str(row["batch_size"][kind])]
    if "peak" not in program:
        return "| " + " | ".join([*cells, "not known", *["-"] * 4, program["error"]]) + " |"
    peak = f"{program['peak'] / GIB:.1f} of {row['hbm'] / GIB:.0f}"
    if not program["fits"]:
        return "| " + " | ".join([*cells, "**no**", peak, "-", "-", "-", program["advice"]]) + " |"
    bound = max(program["seconds"], key=program["seconds"].get)
    seconds = program["seconds"][bound]
    tokens = row["batch_size"][kind] * (row["num_tokens"] if kind == "train" else 1)
    collectives = ", ".join(
        f"{name} {count}: {size / GIB:.2f} GiB"
        for name, (count, size) in program["collectives"].items()
    )
    cells += ["yes", peak, f"{seconds * 1e3:,.1f}", bound, f"{tokens / seconds:,.0f}", collectives]
    return "| " + " | ".join(cells) + " |"


HEADER = """# Plans for TPU pods

Made by `python benchmarks/pod_plans.py` with the TPU compiler of `jax[tpu]`, on a machine without
a TPU. **Nothing here was measured on a TPU.** Each line compiled the real train step or the real
decode loop for the topology; memory is what the compiler reports per device, collectives are
read from the compiled program. Times are lower bounds: matrix products, memory traffic and
collectives over the chip's published peaks, the largest of the three.

The fine-tune is the paper's on DialogSum: prompts of 768 tokens, targets of 128, 4 streams in the
upper half of the layers, rank 8 early-exit adapter, LoRA of rank 32 or all weights, bfloat16 with
float32 for what is trained, `train.remat=full`, splash attention. Decoding: 32 draft nodes a pass,
greedy, streams deferred. The mesh is data x fsdp x tensor. tpu7x has two devices a chip.

For tpu7x the compiler of libtpu 0.0.42 crashes on train steps with fsdp, and does not end within
two minutes on meshes without (tried with 4 layers), whether with streams and splash attention or
without. Its decode loop compiles."""


def main() -> int:
    """Plans what is not planned yet; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")
    out = Path(_OUT.value)
    path = out / "pods.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    wanted = [("OpenLLaMA-7B, LoRA", "v5e:4x4", 4), ("OpenLLaMA-7B, LoRA", "v5e:4x4", 0)]
    wanted += [("70B Llama shape, LoRA", "v5p:4x4x4", 4)]
    wanted += [(name, topology, 4) for topology in TOPOLOGIES for name in MODELS]
    done = {(row["model"], row["topology"], row["streams"]) for row in rows}
    with tempfile.TemporaryDirectory() as directory:
        for name, topology, streams in dict.fromkeys(wanted):
            if (name, topology, streams) in done or _ONLY.value not in name:
                continue
            began = time.perf_counter()
            rows.append(plan_row(Path(directory), name, topology, streams))
            order = [(n, t, s) for n in MODELS for t in TOPOLOGIES for s in (4, 0)]
            rows.sort(key=lambda r: order.index((r["model"], r["topology"], r["streams"])))
            write_atomic(path, json.dumps(rows, indent=1) + "\n")
            write_atomic(out / "pods.md", markdown(rows, HEADER))
            messages.say(f"{name} on {topology}: {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    start.run(main)

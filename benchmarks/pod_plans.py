"""Plans the paper's fine-tunes, and larger ones, for TPU pods; writes docs/pods.md and .json.

    pip install -e ".[plan]"
    python benchmarks/pod_plans.py            (passes of one chip: a quarter of an hour on 2 cores)
    python benchmarks/pod_plans.py --pods     (whole pods too: an hour)

What was planned at this version is not planned again, so it can be stopped and started. No TPU, no
weights and no network are needed. Training divides everything over fsdp, and heads too from 64
devices on; decoding is planned on the mesh that such a training decodes on.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pods_page as page
from absl import flags

from ssjax import config as config_lib
from ssjax import messages
from ssjax.cli import start
from ssjax.config import MeshConfig
from ssjax.files.writing import write_atomic
from ssjax.parallel import partitioning
from ssjax.planning import plans
from ssjax.planning.experiments import described, resolve_shapes
from ssjax.planning.passes import with_nodes
from ssjax.planning.topologies import open_topology
from ssjax.weights.base import read_model_config

_OUT = flags.DEFINE_string("out", "docs", "Directory of pods.md and pods.json.")
_ONLY = flags.DEFINE_string("only", "", "Plan this model alone.")
_PODS = flags.DEFINE_bool("pods", False, "Plan train steps and decode loops of whole pods too.")

ROOT = Path(__file__).parents[1]
_PATIENCE = 1800  # seconds for a program; some meshes of tpu7x take libtpu 0.0.42 longer
TOPOLOGIES = ("v5e:4x4", "v5p:4x4x4", "v6e:16x16", "v5e:16x16", "v5p:8x8x8", "tpu7x:2x2x1")


# Hub ids, whose shapes are part of the package, and how they are trained.
MODELS = {
    "OpenLLaMA-7B, LoRA": ("openlm-research/open_llama_7b", "shared"),
    "70B Llama shape, LoRA": ("meta-llama/Llama-3.1-70B", "shared"),
    "OPT-1.3B, LoRA": ("facebook/opt-1.3b", "shared"),
    "Llama-3.1-8B, LoRA": ("meta-llama/Llama-3.1-8B", "shared"),
    "Llama-3.1-8B, full": ("meta-llama/Llama-3.1-8B", "full"),
}
# What a decode pass costs on one chip, by the number of its nodes.
PASS_MODELS = {
    "Llama-3.2-1B": "meta-llama/Llama-3.2-1B",
    "OpenLLaMA-7B": "openlm-research/open_llama_7b",
}
CHIPS = ("v5e:1x1", "v6e:1x1")
NODE_COUNTS = (1, 16, 64)
PROMPT_LENGTHS = (512, 2048)


def make_config(source: str, mode: str, num_streams: int = 4):
    """The paper's DialogSum fine-tune of a model."""
    path = ROOT / "experiments" / "dialogsum.py"
    spec = importlib.util.spec_from_file_location("dialogsum", path)
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    c = experiment.get_config("openllama-7b")
    c.model.pretrained = source
    c.adaptation.mode = mode
    c.streams.num_stream_layers = read_model_config(source, "bfloat16").num_layers // 2
    c.streams.num_streams = num_streams
    if not num_streams:
        c.streams.exit_rank = 0
    return config_lib.from_config_dict(c)


def make_pass_config(source: str):
    """A model with 4 streams in its top 4 layers that know their parents; 640 slots a row."""
    c = config_lib.default_config()
    c.model.pretrained, c.model.dtype = source, "bfloat16"
    c.streams.num_streams = c.streams.num_stream_layers = 4
    c.data.max_prompt_length, c.decode.max_new_tokens = 512, 128
    return config_lib.from_config_dict(c)


def plan(name: str, topology_name: str, num_streams: int, kind: str) -> dict:
    """One program of a row, or with kind "settings" what both have in common, as plain values."""
    source, mode = MODELS[name]
    topology = open_topology(topology_name)
    tensor = min(8, max(1, topology.num_devices // 32))
    for_training = MeshConfig(data=1, fsdp=topology.num_devices // tensor, tensor=tensor)
    config = make_config(source, mode, num_streams)
    data = dataclasses.replace(config.data, batch_size=max(32, for_training.fsdp))
    config = dataclasses.replace(config, data=data, mesh=for_training)
    config, model = resolve_shapes(config)
    mesh = partitioning.make_mesh(for_training, topology.devices)
    partitioning.check_shardable(config, mesh)
    for_decoding = partitioning.decode_mesh(for_training, config.model, mesh)
    decode = dataclasses.replace(config.decode, batch_size=max(8, for_decoding.shape["data"]))
    config = dataclasses.replace(config, decode=decode)
    hbm = topology.device.hbm
    if kind == "settings":
        return {
            "devices": topology.num_devices,
            "hbm": hbm,
            "batch_size": {"train": data.batch_size, "decode": decode.batch_size},
            "mesh": {"train": dict(mesh.shape), "decode": dict(for_decoding.shape)},
            "num_tokens": data.max_prompt_length + data.max_target_length,
        }
    if kind == "train":
        program = plans.plan_training(config, model, mesh, hbm)
    else:
        program = plans.plan_decoding(config, model, for_decoding, hbm)
    return described(program, config, topology.device) | {"version": version()}


def plan_pass(name: str, topology_name: str, kind: str, count: int) -> dict:
    """A pass of so many nodes, or a prefill of so many tokens, on one chip."""
    topology = open_topology(topology_name)
    config, model = resolve_shapes(make_pass_config(PASS_MODELS[name]))
    mesh = partitioning.make_mesh(config.mesh, topology.devices)
    if kind == "passes":
        config = with_nodes(config, count)
        program = plans.plan_decoding(config, model, mesh, topology.device.hbm)
    else:
        program = plans.plan_prefill(config, model, mesh, topology.device.hbm, count)
    return described(program, config, topology.device) | {"version": version()}


def version() -> str:
    """When what is planned was last changed, as commits say it."""
    rooms = [f"ssjax/{room}" for room in ("models", "decoding", "training")]
    when = ["--format=%ad", "--date=format:%Y-%m-%d %H:%M"]
    command = ["git", "-C", str(ROOT), "log", "-1", *when, "--", *rooms]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def in_child(directory: Path, function: Callable[..., dict], *arguments) -> dict:
    """What a function returns that compiles: a compiler may crash, or not end."""
    found = directory / "found.json"
    child = os.fork()
    if child == 0:
        signal.alarm(_PATIENCE)
        found.write_text(json.dumps(function(*arguments)))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 0:
        raise SystemExit(code)
    if code < 0:
        late = -code == signal.SIGALRM
        error = f"not compiled in {_PATIENCE // 60} minutes" if late else "the compiler crashes"
        return {"fits": False, "error": error, "version": version()}
    return json.loads(found.read_text())


def plan_row(directory: Path, name: str, topology_name: str, num_streams: int) -> dict:
    """One row of the tables of pods."""
    row = {"model": name, "topology": topology_name, "streams": num_streams}
    arguments = (name, topology_name, num_streams)
    row |= in_child(directory, plan, *arguments, "settings")
    for kind in ("train", "decode") if num_streams else ("train",):
        row[kind] = in_child(directory, plan, *arguments, kind)
    return row


_POD_ORDER = [(name, topology, n) for name in MODELS for topology in TOPOLOGIES for n in (4, 0)]
_POD_ORDER = [key for key in _POD_ORDER if key[2] or key[:2] == ("OpenLLaMA-7B, LoRA", "v5e:4x4")]
_PASS_KEYS = ("model", "topology", "kind", "count")
_PASS_ORDER = [
    (name, chip, kind, count)
    for kind, counts in (("passes", NODE_COUNTS), ("prefill", PROMPT_LENGTHS))
    for name in PASS_MODELS
    for chip in CHIPS
    for count in counts
]


def main() -> int:
    """Plans what is not planned at this version; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")
    out = Path(_OUT.value)
    path = out / "pods.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    passes = {_pass_key(row): row for row in kept.get("passes", [])}
    pods = {_pod_key(row): row for row in kept.get("pods", [])}

    def keep(what, began):
        rows = [[passes[key] for key in _PASS_ORDER if key in passes]]
        rows += [[pods[key] for key in _POD_ORDER if key in pods]]
        text = json.dumps(dict(zip(("passes", "pods"), rows, strict=True)), indent=1)
        write_atomic(path, text + "\n")
        write_atomic(out / "pods.md", page.markdown(*rows, page.read_trees(out)))
        messages.say(f"{what}: {time.perf_counter() - began:.0f} s")

    def wanted(order, rows, program):
        for key in order:
            there = key in rows and rows[key][program]["version"] == version()
            if not there and _ONLY.value in key[0]:
                yield key

    with tempfile.TemporaryDirectory() as directory:
        for key in wanted(_PASS_ORDER, passes, "program"):
            began = time.perf_counter()
            row = dict(zip(_PASS_KEYS, key, strict=True))
            passes[key] = row | {"program": in_child(Path(directory), plan_pass, *key)}
            keep(", ".join(map(str, key)), began)
        for key in wanted(_POD_ORDER, pods, "train") if _PODS.value else ():
            began = time.perf_counter()
            pods[key] = plan_row(Path(directory), *key)
            keep(", ".join(map(str, key)), began)
    keep("written", time.perf_counter())
    return 0


def _pass_key(row):
    return tuple(row[name] for name in _PASS_KEYS)


def _pod_key(row):
    return row["model"], row["topology"], row["streams"]


if __name__ == "__main__":
    start.run(main)

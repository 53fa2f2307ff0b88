"""Compiles an experiment for a TPU pod without one: whether it fits, and what it costs.

    python -m ssjax.plan --config experiments/dialogsum.py:openllama-7b --topology v5e:4x4 \\
        --config.mesh.data=1 --config.mesh.fsdp=16
    python -m ssjax.plan --config FILE --show-shardings --devices 8 --config.mesh.tensor=2

The train step and the decode loop are the ones that `ssjax.train` and `ssjax.evaluate` run. No
TPU is needed, only its compiler: pip install "ssjax[plan]". Of a base model only config.json is
read. Times are lower bounds from published peaks of the chip, not measurements. Exit status 0:
everything fits; 1: something does not; 2: bad input.
"""

import dataclasses

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from ssjax import config as config_lib
from ssjax.cli import options, start
from ssjax.config import Config
from ssjax.models.parameters import flatten
from ssjax.models.transformer import Transformer
from ssjax.parallel import partitioning
from ssjax.planning.plans import ProgramPlan, advice, plan_decoding, plan_training
from ssjax.planning.topologies import GIB, Topology, open_topology
from ssjax.training.programs import TrainPrograms, make_train_programs
from ssjax.weights.base import read_model_config

_EXPERIMENT = options.define_experiment_flags()
_TOPOLOGY = flags.DEFINE_string("topology", "", "TPU to compile for, such as v5e:4x4 or v5p:4x4x4.")
_DEVICES = flags.DEFINE_integer(
    "devices", 0, "Without a topology: simulated CPU devices.", lower_bound=0, upper_bound=4096
)
_SHOW = flags.DEFINE_bool("show_shardings", False, "Print where every leaf lies; compile nothing.")
_JSON = options.define_output("json", "Also write the plan to this file.")


def main() -> int:
    """Plans the experiment of the command line; returns the exit code."""
    config = _EXPERIMENT.read()
    jax.config.update("jax_platforms", "cpu")
    topology = None
    if _TOPOLOGY.value:
        topology = open_topology(_TOPOLOGY.value)
    elif _DEVICES.value:
        jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    mesh = partitioning.make_mesh(config.mesh, topology.devices if topology else None)
    config, model = resolve_shapes(config)
    partitioning.check_shardable(config, mesh)
    if _SHOW.value:
        rows = list_shardings(make_train_programs(config, model, mesh))
        show_shardings(rows)
        options.write_json(_JSON.value, rows)
        return 0
    result = plan(config, model, mesh, topology)
    show_plan(result)
    options.write_json(_JSON.value, result)
    return 0 if result["train"]["fits"] and result["decode"]["fits"] else 1


def resolve_shapes(config: Config) -> tuple[Config, Transformer]:
    """The config with the sizes of its base, and the model; no tokenizer or weights are read.

    Raises:
      UserError: the base or its streams cannot be.
    """
    model = config.model
    if model.pretrained:
        model = read_model_config(model.pretrained, model.dtype)
    elif not model.vocab_size:
        model = dataclasses.replace(model, vocab_size=config.data.tokenizer_vocab_size)
    config = dataclasses.replace(config, model=model)
    config_lib.check_stream_layers(config)
    shapes = dataclasses.replace(model, pretrained="")
    return config, Transformer(shapes, config.streams, True, config.adaptation)


def plan(config: Config, model: Transformer, mesh, topology: Topology | None) -> dict:
    """Plans of both programs and what they mean on a chip, as plain values."""
    device = topology.device if topology else None
    hbm = device.hbm if device else 0

    def values(program: ProgramPlan) -> dict:
        described = dataclasses.asdict(program)
        if device and program.traffic:
            described["seconds"] = program.seconds(device)
        if not program.fits:
            described["advice"] = advice(program, config, hbm)
        return described

    decode = config.decode
    return {
        "topology": topology.name if topology else f"{mesh.size} devices here",
        "mesh": dict(mesh.shape),
        "hbm": hbm,
        "dtype": config.model.dtype,
        "adaptation": config.adaptation.mode,
        "batch_size": config.data.batch_size,
        "num_tokens": config.data.max_prompt_length + config.data.max_target_length,
        "decode_batch_size": decode.batch_size,
        "train": values(plan_training(config, model, mesh, hbm)),
        "decode": values(plan_decoding(config, model, mesh, hbm)),
    }


def list_shardings(programs: TrainPrograms) -> list[dict]:
    """Every leaf of the train state and of the frozen weights."""
    groups = {
        "params": programs.state.params,
        "frozen": programs.frozen,
        "opt_state": programs.state.opt_state,
    }
    rows = []
    for group, tree in groups.items():
        if group == "opt_state":
            leaves = {
                jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
        else:
            leaves = flatten(tree)
        for name, leaf in leaves.items():
            rows.append(
                {
                    "leaf": f"{group}/{name}",
                    "shape": list(leaf.shape),
                    "dtype": str(leaf.dtype),
                    "sharding": [part for part in leaf.sharding.spec],
                    "bytes_per_device": partitioning.bytes_per_device(
                        leaf.shape, leaf.dtype, leaf.sharding
                    ),
                }
            )
    return rows


def show_shardings(rows: list[dict]) -> None:
    """Prints a line a leaf, and the sum."""
    table = Table("leaf", "shape", "divided over", "bytes per device", show_edge=False)
    for row in rows:
        over = ", ".join(
            "-" if part is None else part if isinstance(part, str) else "+".join(part)
            for part in row["sharding"]
        )
        shape = "x".join(map(str, row["shape"])) or "scalar"
        table.add_row(row["leaf"], f"{shape} {row['dtype']}", over, f"{row['bytes_per_device']:,}")
    total = sum(row["bytes_per_device"] for row in rows)
    table.add_row("all", "", "", f"{total:,}")
    Console(width=160).print(table)


def show_plan(result: dict) -> None:
    """Prints both programs side by side."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    table = Table(
        "per device", "train step", "decode, a pass", title=f"{result['topology']}, {mesh}"
    )
    programs = [result["train"], result["decode"]]

    def row(name, values):
        table.add_row(name, *values)

    for name in dict.fromkeys(key for program in programs for key in program["inputs"]):
        row(name, [_size(p["inputs"].get(name)) for p in programs])
    row("temporary", [_size(p["temporary"]) for p in programs])
    limit = f" of {_size(result['hbm'])}" if result["hbm"] else ""
    row("peak memory", [_size(p["peak"]) + limit for p in programs])
    row("operations", [f"{p['flops'] / 1e12:,.3f} T" for p in programs])
    row("memory traffic", [_size(p["traffic"] or None) for p in programs])
    for kind in dict.fromkeys(key for program in programs for key in program["collectives"]):
        counts = [p["collectives"].get(kind) for p in programs]
        row(kind, [f"{c[0]}, {_size(c[1])}" if c else "-" for c in counts])
    if any("seconds" in p for p in programs):
        for name in ("compute", "memory", "interconnect"):
            values = [p["seconds"][name] * 1e3 if "seconds" in p else None for p in programs]
            row(f"{name}, at least", ["-" if v is None else f"{v:,.2f} ms" for v in values])
        train, decode = programs
        slowest = [max(p["seconds"].values()) if "seconds" in p else None for p in programs]
        tokens = [result["batch_size"] * result["num_tokens"], result["decode_batch_size"]]
        rates = [None if s is None else t / s for t, s in zip(tokens, slowest, strict=True)]
        unit = ["tokens/s", "tokens/s at 1 a call"]
        row(
            "roofline, all devices",
            ["-" if r is None else f"{r:,.0f} {u}" for r, u in zip(rates, unit, strict=True)],
        )
    row("fits", ["yes" if p["fits"] else "NO" for p in programs])
    console = Console(width=100)
    console.print(table)
    for name in ("train", "decode"):
        if "advice" in result[name]:
            console.print(f"{name} does not fit: {result[name]['advice']}", highlight=False)


def _size(count) -> str:
    if count is None:
        return "-"
    if count >= 0.1 * GIB:
        return f"{count / GIB:,.2f} GiB"
    return f"{count / 2**20:,.2f} MiB"


def main_in_child() -> int:
    """`main`, and one line if the compiler crashes, as that of libtpu 0.0.42 does for tpu7x."""
    return start.outlive(
        main,
        "the TPU compiler crashed on this program; try other sizes of mesh.*, or another version "
        "of jax[tpu]",
    )


if __name__ == "__main__":
    start.run(main_in_child)

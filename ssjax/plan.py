"""Compiles an experiment for a TPU pod without one: whether it fits, and what it costs.

    python -m ssjax.plan --config experiments/dialogsum.py:openllama-7b --topology v5e:4x4 \\
        --config.mesh.data=1 --config.mesh.fsdp=16
    python -m ssjax.plan --config FILE --topology v5e:1x1 --nodes 8,16,32 --prefill 512,2048
    python -m ssjax.plan --acceptance RUN --topology v5e:1x1
    python -m ssjax.plan --config FILE --topology v5e:2x4 --config.mesh.tensor=8 --serve --slots 64
    python -m ssjax.plan --config FILE --show-shardings --devices 8 --config.mesh.tensor=2

The train step and the decode loop are the ones that `ssjax.train` and `ssjax.evaluate` run. No
TPU is needed, only its compiler: pip install "ssjax[plan]". Of a base model only config.json is
read. Times are of two kinds, and neither was measured: lower bounds from published peaks of the
chip, and what the compiler predicts, by part. With --nodes: decode passes by number of nodes;
they are sampled if --config.decode.temperature is given, else greedy. With --acceptance: the tree
for the chip, for greedy decoding. With --serve: passes of `ssjax.serve` with all slots busy, each
row drawn in its own way; drafts pay there from as many tokens per call on as their step cost.

Exit status 0: everything fits; 1: something does not; 2: bad input.
"""

import dataclasses

import jax
from absl import flags

from ssjax.cli import options, start
from ssjax.errors import UserError
from ssjax.evaluation import best_way, candidates, planned_way
from ssjax.files import places
from ssjax.parallel import partitioning
from ssjax.planning.experiments import list_shardings, plan_programs, resolve_shapes
from ssjax.planning.passes import plan_passes
from ssjax.planning.tables import show_passes, show_plan, show_shardings
from ssjax.planning.topologies import open_topology
from ssjax.training.programs import make_train_programs

_EXPERIMENT = options.define_experiment_flags()
_TOPOLOGY = flags.DEFINE_string("topology", "", "TPU to compile for, such as v5e:4x4 or v5p:4x4x4.")
_DEVICES = flags.DEFINE_integer(
    "devices", 0, "Without a topology: simulated CPU devices.", lower_bound=0, upper_bound=4096
)
_NODES = flags.DEFINE_list(
    "nodes",
    None,
    "Plan decode passes of so many nodes, the root included, and plain ones beside them, such as "
    "8,16,32; the train step is left out then.",
)
_PREFILL = flags.DEFINE_list("prefill", None, "Plan the reading of prompts of so many tokens too.")
_ACCEPTANCE = flags.DEFINE_string(
    "acceptance",
    "",
    "Run directory that was calibrated, in place of --config: the tree for this TPU by what was "
    "accepted there, kept beside the run until it is calibrated on such a device.",
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["int8"], "Of decode passes and prefills, as in ssjax.generate."
)
_SERVE = flags.DEFINE_bool("serve", False, "Plan the passes of a server, plain and with drafts.")
_SLOTS = options.define_count("slots", 16, "Of the server: requests that run at once.")
_SHOW = flags.DEFINE_bool("show_shardings", False, "Print where every leaf lies; compile nothing.")
_JSON = options.define_output("json", "Also write the plan to this file.")


def main() -> int:
    """Plans the experiment of the command line; returns the exit code."""
    of_passes = bool(_NODES.value or _PREFILL.value or _ACCEPTANCE.value or _SERVE.value)
    if of_passes and not _TOPOLOGY.value:
        raise UserError(
            "--nodes, --prefill, --acceptance and --serve need a --topology: the compiler of TPUs "
            "is asked"
        )
    if _WEIGHTS.value and not of_passes:
        raise UserError(
            "--weights is of decode passes: give --nodes, --prefill, --acceptance or --serve"
        )
    config = _EXPERIMENT.read_run(_ACCEPTANCE.value) if _ACCEPTANCE.value else _EXPERIMENT.read()
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
    if of_passes:
        return _plan_passes(config, model, mesh, topology)
    result = plan_programs(config, model, mesh, topology)
    show_plan(result)
    options.write_json(_JSON.value, result)
    return 0 if result["train"]["fits"] and result["decode"]["fits"] else 1


def _plan_passes(config, model, mesh, topology) -> int:
    """Plans decode passes and prefills, and chooses a tree if a run says what is accepted."""
    run, measured = places.of(_ACCEPTANCE.value), None
    node_counts = options.counts(_NODES) if _NODES.value else []
    if _SERVE.value:
        decode = dataclasses.replace(config.decode, batch_size=_SLOTS.value)
        config = dataclasses.replace(config, decode=decode)
        node_counts = node_counts or [1 + decode.num_nodes]
    if _ACCEPTANCE.value:
        # Calibrations replay greedy decoding, so its passes are what counts.
        decode = dataclasses.replace(config.decode, temperature=0.0)
        config = dataclasses.replace(config, decode=decode)
        measured = planned_way.read_measured(run, config.streams.num_streams, decode.deferred)
        node_counts = node_counts or measured.node_counts
    result = plan_passes(
        config,
        model,
        mesh,
        topology,
        node_counts=node_counts,
        prompt_lengths=options.counts(_PREFILL) if _PREFILL.value else [],
        int8=_WEIGHTS.value == "int8",
        serving=_SERVE.value,
    )
    show_passes(result)
    fits = all(each["fits"] for kind in ("passes", "prefill") for each in result[kind].values())
    if measured and fits:
        seconds = {n: each["predicted"]["seconds"] for n, each in result["passes"].items()}
        chosen = planned_way.choose(measured, seconds, config.decode.batch_size)
        candidates.show_one(chosen)
        situation = (result["device"], result["dtype"])
        print(planned_way.keep(run, measured, chosen, *situation, by=topology.name))
        result["chosen"] = best_way.candidate_values(chosen.chosen)
    options.write_json(_JSON.value, result)
    return 0 if fits else 1


def main_in_child() -> int:
    """`main`, and one line if the compiler crashes, as that of libtpu 0.0.42 does for tpu7x."""
    return start.outlive(
        main,
        "the TPU compiler crashed on this program; try other sizes of mesh.*, or another version "
        "of jax[tpu]",
    )


if __name__ == "__main__":
    start.run(main_in_child)

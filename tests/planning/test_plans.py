"""Plans for pods: what they count, and that the real programs compile for TPU."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import meshes
import pytest
import verb_server
from jax.sharding import PartitionSpec as P

from ssjax.config import MeshConfig, experiment
from ssjax.decoding import ways
from ssjax.decoding.drafters import BestFirstDrafter
from ssjax.decoding.ways import Situation
from ssjax.errors import UserError
from ssjax.evaluation import best_way
from ssjax.models.parameters import count
from ssjax.models.transformer import abstract_params
from ssjax.parallel import accelerators, partitioning
from ssjax.parallel.program_cost import count_flops
from ssjax.planning import plans
from ssjax.planning.compiled_cost import program_cost
from ssjax.planning.program_text import read_program
from ssjax.planning.topologies import CHIPS, GIB, open_topology
from ssjax.training.programs import make_train_programs

pytestmark = pytest.mark.stress  # the TPU compiler takes its time

ROOT = Path(__file__).parents[2]
EXPERIMENT = f"--config={ROOT / 'experiments' / 'dialogsum.py'}:smoke"
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra plan is not installed"
)


@needs_compiler
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_peaks_are_known_by_the_names_that_devices_have(name):
    """Also of devices of which a chip is two."""
    topology = open_topology(name)
    assert accelerators.peak_flops(topology.devices) == topology.device.flops


def call(*arguments):
    return verb_server.server(XLA_FLAGS="").call("plan", [EXPERIMENT, *arguments])


def test_products_are_counted_through_loops_and_branches():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert count_flops(lambda a, b: a @ b, a, b) == 2 * 3 * 5 * 7

    def looped(a):
        a = jax.lax.scan(lambda x, _: (x @ jnp.ones((5, 5)), None), a, length=4)[0]
        a = jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ jnp.ones((5, 5)), a)
        a = jax.jit(jax.checkpoint(lambda x: x @ jnp.ones((5, 5))))(a)
        return jax.lax.cond(a.sum() > 0, lambda x: x, lambda x: x @ jnp.ones((5, 5)), a)

    assert count_flops(looped, a) == (4 + 1 + 1 + 1) * 2 * 3 * 5 * 5


def test_a_draft_vocabulary_is_planned_by_its_size(tmp_path):
    """The products of the streams with the head are smaller, in training and in a pass."""
    flops = {}
    for size in (0, 128):
        path = tmp_path / f"{size}.json"
        told = call("--json", path, f"--config.streams.draft_vocab_size={size}")
        assert told.returncode == 0, told.stderr
        plan = json.loads(path.read_text())
        flops[size] = [plan[program]["flops"] for program in ("train", "decode")]
    for few, whole in zip(flops[128], flops[0], strict=True):
        assert few < whole


def test_collectives_are_counted_as_often_as_their_loop_runs():
    """Five times an all-reduce of [8, 16] float32 in a loop, and a gather outside it."""
    mesh = meshes.make_mesh((1, 1, 8))

    def summed(x, weights):
        def step(x, weight):
            y = jax.shard_map(
                lambda x, w: jax.lax.psum(x @ w, "tensor"),
                in_specs=(P(None, "tensor"), P("tensor")),
                out_specs=P(),
                check_vma=False,
            )(x, weight)
            return y, None

        x = jax.lax.scan(step, x, weights)[0]
        return jax.lax.with_sharding_constraint(x, P(None, "tensor"))

    with jax.set_mesh(mesh):
        arguments = jnp.ones((8, 16)), jnp.ones((5, 16, 16))
        text = jax.jit(summed).lower(*arguments).compile().as_text()
    assert program_cost(read_program(text)).collectives == {"all-reduce": (5, 5 * 8 * 16 * 4)}


LOOP = """
%another_tiling (param_4: f32[5,16,16]) -> f32[5,16,16] {
  %param_4 = f32[5,16,16]{2,1,0:T(32,128)} parameter(0)
  ROOT %copy = f32[5,16,16]{2,1,0:T(8,128)} copy(%param_4)
}
%fused_slice (param_0: f32[5,16,16], param_1: s32[]) -> f32[16,16] {
  %param_0 = f32[5,16,16]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %tiled = f32[5,16,16]{2,1,0:T(8,128)} fusion(%param_0), kind=kLoop, calls=%another_tiling
  ROOT %slice = f32[16,16]{1,0} dynamic-slice(%tiled, %param_1), dynamic_slice_sizes={1,16,16}
}
%start (param_2: f32[2,16]) -> f32[16,16] {
  %param_2 = f32[2,16]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[16,16]{1,0} all-gather(%param_2), channel_id=7, dimensions={0}
}
%end (param_3: f32[2,16]) -> f32[16,16] {
  %param_3 = f32[2,16]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[16,16]{1,0} all-gather(%param_3), channel_id=7, dimensions={0}
}
%body (state: (s32[], f32[5,16,16], f32[2,16])) -> (s32[], f32[5,16,16], f32[2,16]) {
  %state = (s32[], f32[5,16,16]{2,1,0}, f32[2,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %w = f32[5,16,16]{2,1,0} get-tuple-element(%state), index=1
  %x = f32[2,16]{1,0} get-tuple-element(%state), index=2
  %own = f32[16,16]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused_slice
  %near = f32[16,16]{1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused_slice
  %begun = f32[16,16]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%start
  %done = f32[16,16]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%end
  ROOT %next = (s32[], f32[5,16,16]{2,1,0}, f32[2,16]{1,0}) tuple(%i, %w, %x)
}
%condition (state.1: (s32[], f32[5,16,16], f32[2,16])) -> pred[] {
  %state.1 = (s32[], f32[5,16,16]{2,1,0}, f32[2,16]{1,0}) parameter(0)
  %limit = s32[] constant(3)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}
ENTRY %main (begin: (s32[], f32[5,16,16], f32[2,16])) -> (s32[], f32[5,16,16], f32[2,16]) {
  %begin = (s32[], f32[5,16,16]{2,1,0}, f32[2,16]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[5,16,16], f32[2,16]) while(%begin), condition=%condition, body=%body
}
"""


def test_a_program_by_hand():
    """Three rounds, each: slices of 1 KiB in place of the whole stack, of which only they are laid
    out anew, one of them written to the chip's own memory; and two views of one exchange."""
    cost = program_cost(read_program(LOOP))
    scalar = 4  # the index, read by both slices
    assert cost.traffic == 3 * (2 * 1024 + 1024 + 2 * scalar)
    assert cost.collectives == {"all-gather": (3, 3 * 1024)}
    endless = read_program(LOOP.replace("direction=LT", "direction=NE"))
    assert program_cost(endless, main_loop=True).collectives == {"all-gather": (1, 1024)}


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:axb", "4x4"])
def test_unknown_topologies_are_refused(name):
    with pytest.raises(UserError, match="must be FAMILY:SHAPE such as v5e:4x4"):
        open_topology(name)


@needs_compiler
def test_topologies():
    assert open_topology("v5e:4x4").device == CHIPS["v5e"]
    two_a_chip = open_topology("tpu7x:2x2x1")
    assert (two_a_chip.num_devices, two_a_chip.device.hbm) == (8, 96 * GIB)
    # Sizes that cut an axis of the torus.
    cut = partitioning.make_mesh(MeshConfig(1, 32, 2), open_topology("v5p:4x4x4").devices)
    assert cut.devices.shape == (1, 32, 2)
    with pytest.raises(UserError, match=r"--topology=v5e:3x3: .*not divisible"):
        open_topology("v5e:3x3")


@pytest.fixture(scope="module")
def planned():
    """(config, model, mesh) of a small bfloat16 model on four chips of v5e."""
    sizes = {"embed_dim": 256, "mlp_dim": 512, "head_dim": 32, "vocab_size": 1024}
    model = meshes.make_model("shared", dtype="bfloat16", **sizes)
    config = meshes.make_config(model, remat="full")
    mesh = partitioning.make_mesh(MeshConfig(1, 2, 2), open_topology("v5e:2x2").devices)
    return config, model, mesh


@needs_compiler
def test_the_train_step_compiles_for_tpu_with_its_kernel(planned):
    config, model, mesh = planned
    plan = plans.plan_training(config, model, mesh, 16 * GIB)
    assert plan.fits and plan.temporary > 0 and plan.flops > 0 and plan.traffic > 0
    # Adam keeps two more of each trained leaf, and a counter or two.
    assert 0 <= plan.inputs["optimizer"] - 2 * plan.inputs["trained parameters"] <= 64
    assert {"all-gather", "all-reduce"} <= plan.collectives.keys()
    programs = make_train_programs(config, model, mesh)
    with jax.set_mesh(mesh):
        lowered = programs.train.lower(programs.state, programs.frozen, programs.batch)
    assert "tpu_custom_call" in lowered.as_text()  # splash attention


@needs_compiler
def test_the_decode_loop_compiles_for_tpu(planned):
    config, model, mesh = planned
    config = dataclasses.replace(
        config, decode=dataclasses.replace(config.decode, batch_size=4, max_new_tokens=32)
    )
    plan = plans.plan_decoding(config, model, mesh, 16 * GIB)
    assert plan.fits
    merged = count(abstract_params(meshes.make_model(**vars(model.config))))
    assert plan.inputs["parameters"] < merged  # bfloat16, over four devices, some copied
    # Caches of 64 slots: 3 layers, keys and values, 2 of 4 rows, 4 of 8 heads, bfloat16.
    assert plan.inputs["cache"] == 3 * 2 * 2 * 4 * 64 * 32 * 2
    # Weights are gathered over fsdp, but neither the cache nor the logits of all nodes.
    rows, nodes = 2, 1 + config.decode.num_nodes
    assert plan.collectives["all-gather"][1] < 2 * merged + rows * nodes * 1024 * 4
    assert set(plan.seconds(CHIPS["v5e"])) == {"compute", "memory", "interconnect"}


@needs_compiler
def test_what_does_not_fit_says_what_to_change(planned):
    config, model, mesh = planned
    plan = plans.plan_training(config, model, mesh, hbm=1_000_000)
    assert not plan.fits and "mesh.fsdp" in plans.advice(plan, config, 1_000_000)
    held = sum(plan.inputs.values())
    assert "train.accumulation" in plans.advice(plan, config, 2 * held)
    plain = dataclasses.replace(config, train=dataclasses.replace(config.train, remat="none"))
    assert "train.remat=full" in plans.advice(plan, plain, 2 * held)


class Broken:
    """A program that the compiler gives up."""

    def __init__(self, words):
        self._error = jax.errors.JaxRuntimeError(words)

    def lower(self):
        return self

    def compile(self):
        raise self._error


def compiled_by(program, inputs):
    return plans._compile(program, (), inputs, flops=1.0, hbm=0, main_loop=False)


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (32.50G) exceeds "
        "available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 32.50G of 15.75G hbm.",
    ],
)
def test_the_compiler_may_give_up(words):
    plan = compiled_by(Broken(words), {"batch": 7})
    assert not plan.fits and plan.peak - int(32.5 * GIB) in (0, 7) and plan.error in words
    with pytest.raises(jax.errors.JaxRuntimeError, match="else"):
        compiled_by(Broken("something else"), {})


@needs_compiler
def test_the_command(tmp_path):
    arguments = ["--topology=v5e:2x2", "--config.mesh.data=2", "--config.mesh.tensor=2"]
    finished = call(*arguments, "--json", tmp_path / "plan.json")
    assert finished.returncode == 0, finished.stderr
    assert "v5e:2x2, data 2 x fsdp 1 x tensor 2" in finished.stdout
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2} and result["train"]["fits"]
    assert result["decode"]["collectives"]["all-reduce"][0] > 0


@needs_compiler
def test_passes_by_number_of_nodes(tmp_path):
    """A plain pass stands beside those that are asked for, and runs no stream."""
    told = call(
        *("--topology=v5e:1x1", "--nodes=4,8", "--prefill=64", "--json", tmp_path / "plan.json")
    )
    assert told.returncode == 0, told.stderr
    assert "a decode pass, ms predicted by the compiler; greedy" in told.stdout
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["device"] == "TPU v5 lite" and list(result["prefill"]) == ["64"]
    assert list(result["passes"]) == ["1", "4", "8"]
    for name, program in (result["passes"] | result["prefill"]).items():
        predicted = program["predicted"]
        assert predicted["seconds"] == pytest.approx(sum(predicted["parts"].values()))
        assert {"trunk", "stream layers", "head", "attention"} <= predicted["parts"].keys()
        assert ("streams, deferred" in predicted["parts"]) == (name != "1")
        assert ("head, drafts" in predicted["parts"]) == (name in ("4", "8"))
    seconds = {name: each["predicted"]["seconds"] for name, each in result["passes"].items()}
    assert result["step_cost"] == {name: each / seconds["1"] for name, each in seconds.items()}


@needs_compiler
def test_a_tree_is_chosen_by_what_a_run_had_accepted(tmp_path):
    """The run is where its numbers are: its sizes need no base, and it names no experiment."""
    config = experiment.load(f"{ROOT / 'experiments' / 'dialogsum.py'}:smoke", {})
    sizes = dataclasses.replace(config.model, vocab_size=512, pretrained="not/here")
    config = dataclasses.replace(config, model=sizes)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    streams = config.streams.num_streams
    shape = {"kind": "best_first", "nodes": 3, "streams": streams, "temperatures": []}
    predicted = [{"drafter": shape | {"min_node_chance": 0.0}, "tokens_per_call": 100.0}]
    here = {"device": "cpu", "dtype": "float32", "step": 7, "num_streams": streams}
    entry = here | {"batch_size": 1, "summary": "", "chosen": {}, "predicted": predicted}
    best_way.store(tmp_path, [entry])
    server = verb_server.server(XLA_FLAGS="")
    asked = ["--acceptance", tmp_path, "--topology=v5e:1x1", "--serve", "--slots=2"]
    told = server.call("plan", asked)
    assert told.returncode == 0, told.stderr
    assert "each row in its own way" in told.stdout and "tokens a second" in told.stdout
    there = Situation("TPU v5 lite", "float32", 7, streams)
    way, line = ways.find(tmp_path, there, batch_size=2)
    assert way.drafter == BestFirstDrafter(3, streams) and "chosen from a plan, v5e:1x1" in line
    assert line.split(": ", 2)[2].split("; --no")[0] in told.stdout
    both = server.call("plan", [*asked, EXPERIMENT])
    assert both.returncode == 2 and "leave out --config" in both.stderr


def test_passes_need_a_topology():
    finished = call("--nodes=4")
    assert finished.returncode == 2 and "need a --topology" in finished.stderr


def test_shardings_are_listed_without_a_topology(tmp_path):
    path = tmp_path / "leaves.json"
    finished = call("--show-shardings", "--devices=4", "--config.mesh.tensor=2", f"--json={path}")
    assert finished.returncode == 0, finished.stderr
    leaves = {leaf["leaf"]: leaf for leaf in json.loads(path.read_text())}
    row = leaves["params/trunk/layers/mlp/up_proj/weight"]
    assert row == {
        "leaf": "params/trunk/layers/mlp/up_proj/weight",
        "shape": [1, 64, 32],
        "dtype": "float32",
        "sharding": [None, "tensor", None],
        "bytes_per_device": 32 * 32 * 4,
    }
    assert "opt_state/1/0/mu/embedder" in leaves
    assert "-, tensor, -" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices=3", "--config.mesh.tensor=3"], "mesh.tensor 3 does not divide"),
        (["--devices=4", "--config.mesh.fsdp=3"], "does not fit 4 devices"),
        (["--topology=v7:1"], "--topology=v7:1 must be FAMILY:SHAPE"),
    ],
)
def test_bad_input_gets_one_line(arguments, message):
    finished = call("--show-shardings", *arguments)
    assert finished.returncode == 2
    [line] = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in finished.stderr


def test_a_crash_of_the_compiler_is_one_line():
    script = (
        "import os, signal, sys; from ssjax.cli import start\n"
        "died = lambda: os.kill(os.getpid(), signal.SIGSEGV) or 0\n"
        "sys.argv = ['plan']\n"
        "start.run(lambda: start.outlive({main}, 'the compiler crashed'))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for main, code, said in (
        ("died", 2, "error: the compiler crashed (signal 11)\n"),
        ("lambda: 1", 1, ""),
        ("lambda: 0", 0, ""),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script.format(main=main)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (code, said)

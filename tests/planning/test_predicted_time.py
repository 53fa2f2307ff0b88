"""What the TPU compiler expects, added up: by hand, and of a program whose products are known."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from ssjax.config import MeshConfig
from ssjax.parallel import partitioning
from ssjax.planning.predicted_time import BESIDE, EXCHANGES, UNNAMED, Part, part_of, predicted_time
from ssjax.planning.program_text import Instruction, read_program
from ssjax.planning.topologies import CHIPS, Chip, open_topology

PASS = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
%layer (state: (s32[], f32[2,16])) -> (s32[], f32[2,16]) {
  %state = (s32[], f32[2,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[2,16]{1,0} get-tuple-element(%state), index=1
  %near = (f32[2,16]{1,0}, f32[2,16]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%x)
  %there = f32[2,16]{1,0:S(1)} copy-done(%near)
  %up = f32[2,16]{1,0} fusion(%x), kind=kOutput, calls=%f, metadata={op_name="jit(decode)/while/body/pass/Transformer.run_trunk/trunk/trunk/while/body/layers/mlp/mlp/up_proj/dot_general"}, backend_config={"estimated_cycles":"9000"}
  %seen = f32[2,16]{1,0} fusion(%x), kind=kLoop, calls=%f, metadata={op_name="jit(decode)/while/body/pass/Transformer.run_trunk/trunk/trunk/while/body/layers/attention/attention/attention._attend_main/attention._attend/exp"}, backend_config={"estimated_cycles":"2200"}
  %all = f32[2,16]{1,0} all-reduce(%up), channel_id=7, to_apply=%sum, metadata={op_name="jit(decode)/while/body/pass/trunk/dot_general"}
  %one = s32[] constant(1)
  %after = s32[] add(%i, %one)
  ROOT %next = (s32[], f32[2,16]{1,0}) tuple(%after, %all)
}
%more (state.1: (s32[], f32[2,16])) -> pred[] {
  %state.1 = (s32[], f32[2,16]{1,0}) parameter(0)
  %limit = s32[] constant(3)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}
%pass (state.2: (s32[], f32[2,16])) -> (s32[], f32[2,16]) {
  %state.2 = (s32[], f32[2,16]{1,0}) parameter(0)
  %turned = f32[2,16]{0,1} copy(%state.2), backend_config={"estimated_cycles":"500"}
  %layers = (s32[], f32[2,16]{1,0}) while(%state.2), condition=%more, body=%layer
  %logits = f32[2,16]{1,0} fusion(%turned), kind=kOutput, calls=%f, metadata={op_name="jit(decode)/while/body/verify/Transformer.logits/head/dot_general"}, backend_config={"estimated_cycles":"7000"}
  %guesses = f32[2,16]{1,0} fusion(%turned), kind=kOutput, calls=%f, metadata={op_name="jit(decode)/while/body/draft/head/dot_general"}, backend_config={"estimated_cycles":"6000"}
  %ahead = f32[2,16]{1,0} fusion(%turned), kind=kOutput, calls=%f, metadata={op_name="jit(decode)/while/body/draft/Transformer.speculate/stream_layers/stream_layers/while/body/layers/mlp/mlp/up_proj/dot_general"}, backend_config={"estimated_cycles":"5000"}
  %best = (f32[2,16]{1,0}, s32[2,16]{1,0}) sort(%guesses, %guesses), dimensions={1}, to_apply=%sum, metadata={op_name="jit(decode)/while/body/draft/top_k"}
  %taken = f32[2,16]{1,0} fusion(%guesses), kind=kLoop, calls=%f, metadata={op_name="jit(decode)/while/body/write/vmap()/scatter"}
  %kept = f32[2,16]{1,0} fusion(%guesses), kind=kLoop, calls=%f, metadata={op_name="jit(decode)/while/body/write/vmap()/select_n"}, backend_config={"estimated_cycles":"2121"}
  %kernel = f32[2,16]{1,0} custom-call(%guesses), custom_call_target="tpu_custom_call"
  %room = f32[2,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %again = (s32[], f32[2,16]{1,0}) tuple(%layers, %kept)
}
%unfinished (state.3: (s32[], f32[2,16])) -> pred[] {
  %state.3 = (s32[], f32[2,16]{1,0}) parameter(0)
  ROOT %some = pred[] fusion(%state.3), kind=kLoop, calls=%f
}
ENTRY %main (begin: (s32[], f32[2,16])) -> (s32[], f32[2,16]) {
  %begin = (s32[], f32[2,16]{1,0}) parameter(0)
  %before = f32[2,16]{1,0} fusion(%begin), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"1000000"}
  ROOT %loop = (s32[], f32[2,16]) while(%begin), condition=%unfinished, body=%pass
}
"""  # noqa: E501, a line of a program is a line

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra plan is not installed"
)


def test_a_pass_by_hand():
    """Three layers and what follows them; what stands before the loop does not count."""
    time = predicted_time(read_program(PASS), main_loop=True)
    assert time.parts == {
        "trunk": Part(3 * 9000, 3),
        "head": Part(7000, 1),
        "attention": Part(3 * 2200, 3),
        "head, drafts": Part(6000, 1),
        "streams, deferred": Part(5000, 1),
        "cache write": Part(2121, 1),
        UNNAMED: Part(500, 1),
    }
    assert list(time.parts)[:3] == ["trunk", "attention", "head"]  # in the order of a pass
    assert time.small == Part(3 * 2200 + 2121 + 500, 3 + 1 + 1)
    assert time.without_estimate == {"sort": 1, "scatter": 1, "Pallas kernel": 1}
    assert (time.beside, time.exchanged) == (3 * 2 * 16 * 4, 3 * 2 * 16 * 4)
    chip = Chip(1, 1.0, bandwidth=128.0, interconnect=64.0, clock=1e3)
    seconds = time.seconds_by_part(chip)
    assert seconds["trunk"] == 27 and seconds[BESIDE] == 3 and seconds[EXCHANGES] == 6
    cycles = 27000 + 7000 + 6600 + 6000 + 5000 + 2121 + 500
    assert time.seconds(chip) == pytest.approx(cycles / 1e3 + 3 + 6)


def test_the_whole_program_counts_without_a_main_loop():
    time = predicted_time(read_program(PASS))
    assert time.parts[UNNAMED].cycles == 1_000_000 + 500


CHOICE = """
%narrow (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  ROOT %x = f32[2]{0} add(%a, %a), backend_config={"estimated_cycles":"10"}
}
%wide (b: f32[2]) -> f32[2] {
  %b = f32[2]{0} parameter(0)
  ROOT %y = f32[2]{0} add(%b, %b), backend_config={"estimated_cycles":"700"}
}
ENTRY %main (which: s32[], c: f32[2]) -> f32[2] {
  %which = s32[] parameter(0)
  %c = f32[2]{0} parameter(1)
  ROOT %d = f32[2]{0} conditional(%which, %c, %c), branch_computations={%narrow, %wide}
}
"""


def test_of_branches_one_counts():
    """The one with more instructions, of equal ones the last."""
    named = CHOICE.replace(
        "branch_computations={%narrow, %wide}", "true_computation=%narrow, false_computation=%wide"
    )
    longer = CHOICE.replace(
        "parameter(0)\n  ROOT %x", "parameter(0)\n  %z = f32[] add(%a)\n  ROOT %x"
    )
    for text, cycles in ((CHOICE, 700), (named, 700), (longer, 10)):
        assert predicted_time(read_program(text)).parts[UNNAMED] == Part(cycles, 1)


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("jit(step)/jvp(Transformer)/Transformer.run_trunk/trunk/while/body/dot", "trunk"),
        ("jit(step)/transpose(jvp(Transformer))/trunk/while/body/dot", "trunk, backward"),
        ("jit(step)/transpose(jvp())/while/body/head/dot", "head, backward"),
        ("jit(step)/mul", "the rest"),
        ("convert.7", UNNAMED),  # the compiler's own name
    ],
)
def test_parts_of_a_train_step(scope, part):
    line = f'ROOT %x = f32[] add(%a, %b), metadata={{op_name="{scope}"}}'
    assert part_of(Instruction("x", "add", 4, 4, (), line)) == part


def test_peaks_follow_from_the_clock():
    """Matrix units of a chip, rows and columns of each, a product and a sum a cycle."""
    units = {"v4": (8, 128), "v5e": (4, 128), "v5p": (8, 128), "v6e": (4, 256), "tpu7x": (8, 256)}
    for name, (number, size) in units.items():
        chip = CHIPS[name]
        assert chip.flops == pytest.approx(number * size**2 * 2 * chip.clock, rel=0.01)


@needs_compiler
@pytest.mark.stress
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_products_come_out_between_the_peak_and_half_of_it(topology):
    """Three of 4096^3, one after another in a loop, and twice one of 8192 x 8192 on eight rows."""
    found = open_topology(topology)
    mesh = partitioning.make_mesh(MeshConfig(1, 1, 1), found.devices[:1])
    alone = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=alone)

    def products(x, weights, few, wide):
        def layer(x, weight):
            with jax.named_scope("trunk"):
                return x @ weight, None

        x = jax.lax.scan(layer, x, weights)[0]
        with jax.named_scope("head"):
            return x, few @ wide

    sizes = shape(4096, 4096), shape(3, 4096, 4096), shape(8, 8192), shape(8192, 8192)
    text = jax.jit(products).lower(*sizes).compile().as_text()
    time, chip = predicted_time(read_program(text)), found.device
    by_compute = 3 * 2 * 4096**3 / chip.flops
    by_weights = 2 * 8192**2 / chip.bandwidth
    seconds = time.seconds_by_part(chip)
    assert by_compute < seconds["trunk"] < 2 * by_compute
    assert by_weights < seconds["head"] + seconds.get(BESIDE, 0) < 2 * by_weights

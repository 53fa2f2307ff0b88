"""What the TPU's compiler makes of the decode loop: read from its text, without a TPU.

A small model with a vocabulary and an MLP of sizes that occur nowhere else, so that an operation
is known by its shape.
"""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from ssjax.config import MeshConfig, ModelConfig, StreamsConfig
from ssjax.decoding import decoder, loop
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.models.axes import placed
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.parallel import partitioning
from ssjax.planning.program_text import read_program
from ssjax.planning.topologies import open_topology

pytestmark = [
    pytest.mark.stress,  # the TPU compiler takes its time
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the extra plan is not installed"
    ),
]

PROMPT, CAPACITY, EMBED, MLP, VOCAB = 1152, 2048, 512, 1536, 32000
LAYERS, KV_HEADS = 24, 4
BATCHES = {"plain": 1, "streams": 2, "medusa": 1}
HEADS = {"plain": 64, "streams": 128, "medusa": 64}  # widths: half of a register's lanes, or all
DRAFTERS = {
    "plain": PlainDrafter(),
    "streams": BestFirstDrafter(15, 4),
    "medusa": BestFirstDrafter(15, 0, num_heads=3),
}
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(0.8, top_k=300, top_p=0.9, min_p=0.01)}


def make_model(mesh, drafter):
    config = ModelConfig(
        vocab_size=VOCAB,
        embed_dim=EMBED,
        mlp_dim=MLP,
        num_layers=LAYERS,
        num_heads=8,
        num_kv_heads=KV_HEADS,
        head_dim=HEADS[drafter],
        dtype="bfloat16",
    )
    streams = StreamsConfig(num_streams=4, num_stream_layers=1)
    if drafter == "medusa":
        streams = StreamsConfig(0, 1, root_rank=0, medusa_heads=3)
    execution = decoder.decoding_execution(mesh, scan=True)
    return Transformer(config, streams, scan=True, execution=execution)


@functools.cache
def compiled(drafter, sampling):
    """The prefill of one device of v5e, lowered, and its decode loop, compiled."""
    mesh = partitioning.make_mesh(MeshConfig(1, 1, 1), open_topology("v5e:2x2").devices[:1])
    model = make_model(mesh, drafter)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), abstract_params(model)
    )
    params = placed(params, model.config, mesh)
    spec = DecodeSpec(CAPACITY, (0,), 0, SAMPLINGS[sampling], deferred=True)
    static = (model, params, DRAFTERS[drafter], spec)
    batch = BATCHES[drafter]
    per_row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    rows = Rows(jax.ShapeDtypeStruct((batch, PROMPT), jnp.int32), per_row, per_row, keys)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(
            lambda params, rows: loop.prefill(model, params, *static[2:], rows), params, rows
        )
        sharding = partitioning.replicated(mesh)
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )
        prefill = decoder.prefill_program.lower(*static, rows)
        return prefill, decoder.decode_program.lower(*static, state).compile()


def compiled_loop(drafter, sampling):
    return compiled(drafter, sampling)[1]


def instructions(drafter, sampling):
    """Every instruction of a pass, those inside of fusions, loops and branches too."""
    program = read_program(compiled_loop(drafter, sampling).as_text())
    found, reached, names = [], set(), [program.outer_loop()]
    while names:
        name = names.pop()
        if name not in reached:
            reached.add(name)
            lines = program.computations.get(name, [])
            found += lines
            names += [n for line in lines for n in (*line.called.values(), *line.branches)]
    return found


def shapes(instruction):
    """Of its result, or of each of its results."""
    shape = instruction.line.split(" = ", 1)[1].split(instruction.kind + "(")[0]
    return [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\[([\d,]+)\]", shape)]


def dimensions(instruction):
    """All sizes in them."""
    return [size for shape in shapes(instruction) for size in shape]


def cache_bytes(drafter):
    values = LAYERS * BATCHES[drafter] * KV_HEADS * CAPACITY * HEADS[drafter]
    return 2 * 2 * values  # keys and values, bfloat16


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_sort_of_the_vocabulary(sampling):
    """It would compile for minutes: drafts and cuts take top-k of the compiler's own kernel."""
    sorts = [i for i in instructions("streams", sampling) if i.kind == "sort"]
    assert sorts and max(max(dimensions(sort)) for sort in sorts) < VOCAB


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_large_products_are_of_the_matrix_unit(drafter):
    """A product of one row otherwise becomes a multiplication of two matrices and a sum."""
    found = instructions(drafter, "greedy")
    assert any(i.kind in ("convolution", "dot") and VOCAB in dimensions(i) for i in found)
    multiplied = [set(dimensions(i)) for i in found if i.kind == "multiply"]
    assert not [sizes for sizes in multiplied if EMBED in sizes and sizes & {MLP, VOCAB}]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_cache_stays_where_it_is(drafter):
    """A scatter has another layout than attention, and the cache is copied whole in each pass."""
    copies = [i for i in instructions(drafter, "greedy") if i.kind in ("copy", "transpose")]
    assert not [i.line for i in copies if {CAPACITY, HEADS[drafter]} <= set(dimensions(i))]
    memory = compiled_loop(drafter, "greedy").memory_analysis()
    assert memory.temp_size_in_bytes < cache_bytes(drafter) / 10
    assert memory.alias_size_in_bytes > cache_bytes(drafter)


def test_no_scores_of_all_pairs_of_a_prompt():
    """Its main rows are computed by the kernel."""
    prefill, _ = compiled("plain", "greedy")
    program = read_program(prefill.compile().as_text())
    lines = [line for lines in program.computations.values() for line in lines]
    assert any("splash" in line.line for line in lines if line.kind == "custom-call")
    assert not [i.line for i in lines if any(shape.count(PROMPT) > 1 for shape in shapes(i))]

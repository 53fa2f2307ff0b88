"""Eight simulated devices compute what one does, and arrays lie where the table says."""

import collections
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P

from ssjax import config as config_lib
from ssjax.config import LossConfig, MeshConfig
from ssjax.decoding import decoder
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.tree import StaticTree
from ssjax.errors import UserError
from ssjax.models.axes import moved, param_axes, param_shardings
from ssjax.models.parameters import flatten
from ssjax.parallel import partitioning

pytestmark = pytest.mark.stress  # 38 programs for 8 devices to compile

GOLDEN = Path(__file__).parents[1] / "golden_shardings.json"
SHAPE = {"data": 2, "fsdp": 2, "tensor": 4}


def test_one_size_takes_the_devices_that_the_others_leave():
    assert partitioning.mesh_sizes(MeshConfig(-1, 2, 2), 8) == (2, 2, 2)
    assert partitioning.mesh_sizes(MeshConfig(2, 2, -1), 4) == (2, 2, 1)
    for config, devices in ((MeshConfig(-1, 3, 1), 8), (MeshConfig(1, 2, 2), 8)):
        with pytest.raises(UserError, match="does not fit 8 devices"):
            partitioning.mesh_sizes(config, devices)


def test_the_table_of_rules():
    assert partitioning.spec(("batch", "length"), (8, 5), SHAPE) == P(("data", "fsdp"), None)
    assert partitioning.spec(("heads", "embed"), (8, 6), SHAPE) == P("tensor", "fsdp")
    # Copied where a size is not divided evenly.
    assert partitioning.spec(("batch", "vocab"), (6, 10), SHAPE) == P(None, None)
    with pytest.raises(ValueError, match="unknown logical axis 'haeds'; known: batch, embed"):
        partitioning.spec(("haeds",), (8,), SHAPE)


def test_a_parameter_without_axes_raises():
    for path in (("trunk", "layers", "mlp", "side_proj", "weight"), ("trunk", "gate"), ("bias",)):
        with pytest.raises(ValueError, match="has no logical axes"):
            param_axes(path)


def test_heads_are_not_cut():
    """Two kv heads of width 8 have 16 rows, which four devices could divide, but not by heads."""
    model = meshes.make_model(num_kv_heads=2)
    shapes = oracles.abstract_params(model)
    leaves = flatten(param_shardings(shapes, model.config, meshes.make_mesh((1, 2, 4))))
    assert leaves["trunk/layers/attention/k_proj/weight"].spec == P(None, None, "fsdp")
    assert leaves["trunk/layers/attention/q_proj/weight"].spec == P(None, "tensor", "fsdp")


def test_every_leaf_lies_where_the_golden_file_says():
    assert meshes.shardings((2, 2, 2)) == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 6}, "mesh.tensor 4 does not divide model.num_heads 6"),
        ({"mlp_dim": 90}, "mesh.tensor 4 does not divide model.mlp_dim 90"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(changes, message):
    config = meshes.make_config(meshes.make_model(**changes))
    with pytest.raises(UserError, match=message):
        partitioning.check_shardable(config, meshes.make_mesh((1, 1, 4)))


def test_a_batch_that_cannot_be_divided_is_refused():
    config = meshes.make_config(meshes.make_model(), accumulation=4)
    with pytest.raises(UserError, match="micro-batch of 4 sequences"):
        partitioning.check_shardable(config, meshes.make_mesh((8, 1, 1)))


@pytest.mark.parametrize(
    ("changes", "given", "sizes"),
    [
        ({}, (), (1, 1, 8)),
        ({"num_heads": 6, "num_kv_heads": 6}, (), (4, 1, 2)),
        ({"mlp_dim": 97}, (), (8, 1, 1)),
        ({}, (-1, 1, 4), (2, 1, 4)),
        ({}, (2, 2, 2), (2, 2, 2)),
    ],
)
def test_weights_move_to_the_mesh_that_decodes(changes, given, sizes):
    """What that mesh does in a pass is read from its program below."""
    model, training = meshes.make_model(**changes), meshes.make_mesh((1, 8, 1))
    mesh = partitioning.decode_mesh(MeshConfig(decode=given), model.config, training)
    assert tuple(mesh.shape.values()) == sizes
    assert mesh.devices.ravel().tolist() == training.devices.ravel().tolist()
    params = oracles.random_params(model, seed=0)
    before = jax.device_put(params, param_shardings(params, model.config, training))
    after = moved(before, model.config, mesh)
    assert jax.tree.map(lambda x: x.sharding, after) == param_shardings(params, model.config, mesh)
    jax.tree.map(np.testing.assert_array_equal, after, params)


def test_a_mesh_to_decode_on_that_does_not_fit_is_refused():
    training = meshes.make_mesh((1, 8, 1))
    for given, message in (
        ((1, 3, 1), "mesh.decode.data=1, mesh.decode.fsdp=3, mesh.decode.tensor=1 does not fit 8"),
        ((1, 1, 8), "mesh.tensor 8 does not divide model.num_heads 4"),
    ):
        changes = {"num_heads": 4, "num_kv_heads": 4} if given[2] == 8 else {}
        with pytest.raises(UserError, match=message):
            partitioning.decode_mesh(
                MeshConfig(decode=given), meshes.make_model(**changes).config, training
            )
    for wrong in ((1, 8), (0, 1, 8), (-1, -1, 1)):
        with pytest.raises(UserError, match="mesh.decode .* must be positive sizes"):
            config_lib.from_dict({"mesh": {"decode": wrong}, "workdir": "x"})


@pytest.fixture(scope="module")
def on_one_device():
    """What training computes on one device, by mode; each is computed once."""
    results = {}

    def measure(mode):
        if mode not in results:
            results[mode] = meshes.train(meshes.make_model(mode), meshes.make_mesh((1, 1, 1)))
        return results[mode]

    return measure


@pytest.mark.parametrize(
    ("mode", "sizes", "changes"),
    [
        *[("full", sizes, {}) for sizes in meshes.MESHES],
        ("full", (2, 1, 2), {"accumulation": 2, "remat": "full"}),
        ("full", (1, 2, 1), {"remat": "products"}),
        ("shared", (2, 2, 2), {}),
        ("lossless", (2, 2, 2), {}),
        pytest.param("detached", (2, 2, 2), {}, marks=pytest.mark.stress),
    ],
)
def test_training_does_not_depend_on_the_mesh(on_one_device, mode, sizes, changes):
    expected, expected_params = on_one_device(mode)
    measured, params = meshes.train(meshes.make_model(mode), meshes.make_mesh(sizes), **changes)
    np.testing.assert_allclose(measured["means"], expected["means"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(measured["grad_norm"], expected["grad_norm"], rtol=1e-5)
    assert expected["means"][0][0] != expected["means"][2][0]  # something was trained
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), params, expected_params
    )


@pytest.mark.stress  # two more programs; what the mesh divides is the same
def test_training_with_parents_roots_and_a_teacher_does_not_depend_on_the_mesh():
    model, loss = meshes.make_model(parent_rank=2, root_rank=2), LossConfig(distillation=0.5)
    one, many = (
        meshes.train(model, meshes.make_mesh(sizes), loss=loss) for sizes in ((1, 1, 1), (2, 2, 2))
    )
    np.testing.assert_allclose(many[0]["means"], one[0]["means"], rtol=0, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), many[1], one[1])


BAD = 48  # in some prompts, in some outputs, in neither
DRAFTERS = {
    "plain": PlainDrafter(),
    "best first": BestFirstDrafter(5, 3),
    "static": StaticDrafter(StaticTree.from_branching((2, 2)), 3),
}


def decode(sizes, drafter, sampling=oracles.GREEDY, batch_size=8, bad=None, int8=False, **changes):
    """bad: a token of which the embedding is not finite."""
    model = meshes.make_model(**changes)
    mesh = meshes.make_mesh(sizes)
    params = oracles.random_params(model, seed=0, table_scale=0.5)
    if bad is not None:
        params["embedder"] = params["embedder"].at[bad].set(np.nan)
    params = jax.device_put(params, param_shardings(params, model.config, mesh))
    settings = {"eos_ids": (7,), "pad_id": 0, "prompt_buckets": (16,)}
    opened = Decoder(model, params, **settings, mesh=mesh, scan=True, int8=int8)
    prompts = oracles.ragged_prompts(0, 8, longest=14, vocab_size=64)
    return oracles.generate(
        opened, prompts, drafter, sampling=sampling, batch_size=batch_size, max_new_tokens=16
    )


@pytest.fixture(scope="module")
def plain_tokens():
    completions = decode((1, 1, 1), PlainDrafter())
    assert {c.finish for c in completions} == {"eos", "length"}
    return oracles.tokens_of(completions)


@pytest.mark.parametrize("sizes", meshes.MESHES)
def test_decoded_tokens_do_not_depend_on_the_mesh(plain_tokens, sizes, monkeypatch):
    """And neither the cache nor the logits are gathered: read from the compiled loop."""
    texts = []

    def compile_and_keep(model, params, drafter, spec, *dynamic):
        compiled = compiled_decode.lower(model, params, drafter, spec, *dynamic).compile()
        texts.append(compiled.as_text())
        return compiled(params, *dynamic)

    compiled_decode = decoder.decode_program
    monkeypatch.setattr(decoder, "decode_program", compile_and_keep)
    assert oracles.tokens_of(decode(sizes, DRAFTERS["best first"])) == plain_tokens

    collectives = collections.Counter(re.findall(r"= \(?(\w+\[[\d,]*\]).* (all-\w+)\(", texts[0]))
    gathered = {shape for shape, kind in collectives if kind != "all-reduce"}
    weights = {"f32[64,64]", "f32[64,32]", "f32[32,64]", "f32[48,64]", "f32[64,48]"}
    weights |= {"f32[2,64]", "f32[64,2]"}  # of the map to the start of streams
    data, fsdp, tensor = sizes
    candidates = {f"{kind}[{8 // (data * fsdp)},3,{5 * tensor}]" for kind in ("f32", "s32")}
    allowed = (weights if fsdp > 1 else set()) | (candidates if tensor > 1 else set())
    assert gathered <= allowed, gathered - allowed
    assert tensor == 1 or candidates <= gathered  # the pattern finds what there is


@pytest.mark.parametrize("name", ["plain", "static"])
def test_other_drafters_on_a_mesh(plain_tokens, name):
    assert oracles.tokens_of(decode((2, 2, 2), DRAFTERS[name])) == plain_tokens


def test_drafts_that_know_their_parents_do_not_depend_on_the_mesh(plain_tokens):
    """Tokens, and what every pass kept: parents are looked up in tables that the mesh divides."""
    one, many = (
        decode(sizes, DRAFTERS["best first"], parent_rank=4, root_rank=4)
        for sizes in ((1, 1, 1), (2, 2, 2))
    )
    assert oracles.tokens_of(many) == oracles.tokens_of(one) == plain_tokens
    assert [c.runs for c in many] == [c.runs for c in one]


def test_a_batch_and_heads_that_the_mesh_does_not_divide(plain_tokens):
    tokens = oracles.tokens_of(decode((4, 1, 2), DRAFTERS["best first"], batch_size=3))
    assert tokens == plain_tokens
    # And with a token that the model cannot read: rows fail where they do on one device.
    changes = {"num_kv_heads": 2, "tie_embeddings": False, "bad": BAD}
    one = decode((1, 1, 1), PlainDrafter(), **changes)
    many = decode((1, 2, 4), DRAFTERS["best first"], **changes)
    ends = [[(c.tokens, c.finish) for c in completions] for completions in (one, many)]
    assert ends[0] == ends[1]
    assert any(c.finish == "error" and c.tokens for c in one) and one[0].finish != "error"


def test_eight_bits_do_not_depend_on_the_mesh(plain_tokens):
    drafter = DRAFTERS["best first"]
    one, many = (decode(sizes, drafter, int8=True) for sizes in ((1, 1, 1), (1, 2, 4)))
    assert oracles.tokens_of(many) == oracles.tokens_of(one) != plain_tokens


def test_samples_do_not_depend_on_the_mesh():
    sampling = Sampling(
        0.9, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, min_new_tokens=3
    )
    one = decode((1, 1, 1), PlainDrafter(), sampling)
    many = decode((2, 2, 2), DRAFTERS["best first"], sampling)
    assert oracles.tokens_of(many) == oracles.tokens_of(one)
    assert oracles.tokens_of(one) != oracles.tokens_of(decode((1, 1, 1), PlainDrafter()))


@pytest.mark.parametrize("tensor", [2, 8])
def test_top_k_of_a_divided_vocabulary(tensor):
    """Many ties, which the lower id wins; more asked for than a part holds."""
    scores = np.random.default_rng(0).integers(0, 4, (4, 3, 16)).astype(np.float32)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :7]
    with jax.set_mesh(meshes.make_mesh((1, 1, tensor))):
        values, ids = jax.jit(lambda x: partitioning.top_k(x, 7))(jnp.asarray(scores))
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, order, axis=-1))


def test_rows_of_a_process_are_those_of_its_devices():
    mesh = meshes.make_mesh((2, 2, 2))
    np.testing.assert_array_equal(partitioning.local_rows(mesh, 8), np.arange(8))
    x = np.arange(24).reshape(8, 3)
    joined = partitioning.global_batch({"x": x}, mesh, 8)["x"]
    np.testing.assert_array_equal(joined, x)
    assert joined.sharding.spec == P(("data", "fsdp"))

"""Parameter trees: merging, casting, counting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.config import AdaptationConfig, ModelConfig, StreamsConfig
from ssjax.errors import UserError
from ssjax.models.execution import Execution
from ssjax.models.head import make_head
from ssjax.models.parameters import (
    cast,
    check_finite,
    count,
    join_projections,
    merge,
    stack_layers,
    unstack_layers,
)
from ssjax.models.transformer import Transformer, abstract_params

D, L, V, F = 16, 3, 11, 20
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 6


def shapes_of(num_streams, tie_embeddings=True, num_stream_layers=2, scan=True):
    """The parameter tree of a model as shape structs; nothing is computed."""
    config = ModelConfig(
        vocab_size=V,
        embed_dim=D,
        num_layers=L,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        mlp_dim=F,
        tie_embeddings=tie_embeddings,
    )
    model = Transformer(
        config, StreamsConfig(num_streams, num_stream_layers, parent_rank=0, root_rank=0), scan=scan
    )
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2, 2), bool)
    init = functools.partial(model.init, num_streams=0)
    return jax.eval_shape(init, jax.random.key(0), tokens, tokens, mask)["params"]


def filled(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), shapes)


def flat(tree):
    return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("num_streams", [1, 4])
@pytest.mark.parametrize("num_stream_layers", [1, 3])
def test_streams_cost_one_vector_each(num_streams, num_stream_layers):
    """The paper's claim on parameters: J * D, whatever the number of stream layers."""
    with_streams = shapes_of(num_streams, num_stream_layers=num_stream_layers)
    without = shapes_of(0, num_stream_layers=num_stream_layers)
    assert count(with_streams) - count(without) == num_streams * D
    added = set(flat(with_streams)) - set(flat(without))
    assert added == {"['stream_embedding']"}
    assert with_streams["stream_embedding"].shape == (num_streams, D)


@pytest.mark.parametrize("scan", [True, False])
def test_count_of_a_model(scan):
    """Every matrix of a decoder layer, added up by hand; all leaves are float32."""
    attention = D * HEADS * HEAD_DIM + 2 * D * KV_HEADS * HEAD_DIM + HEADS * HEAD_DIM * D
    layer = attention + 3 * D * F + 2 * D
    tied, untied = shapes_of(2, scan=scan), shapes_of(2, tie_embeddings=False, scan=scan)
    assert count(tied) == L * layer + V * D + D + 2 * D
    assert count(untied) - count(tied) == V * D
    assert {x.dtype for x in jax.tree.leaves(tied)} == {jnp.dtype("float32")}
    assert count({}) == 0
    assert count({"scalar": jnp.zeros(()), "empty": jnp.zeros((0, 5))}) == 1


def test_the_two_forms_are_those_of_the_model():
    """`unstack_layers` yields the tree that the unrolled model declares, and back."""
    scanned, unrolled = shapes_of(2), shapes_of(2, scan=False)
    params = filled(scanned)
    converted = unstack_layers(params)
    assert {k: x.shape for k, x in flat(converted).items()} == {
        k: x.shape for k, x in flat(unrolled).items()
    }
    back = flat(stack_layers(converted))
    assert back.keys() == flat(params).keys()
    for key, leaf in flat(params).items():
        np.testing.assert_array_equal(back[key], leaf)
    for i in range(2):
        np.testing.assert_array_equal(
            converted["stream_layers"][f"layers_{i}"]["mlp"]["up_proj"]["weight"],
            params["stream_layers"]["layers"]["mlp"]["up_proj"]["weight"][i],
        )


def test_layers_may_stay_where_they_are():
    """Equal to those that are copied, without memory of their own, and alive without the rest."""
    stacked = {"layers": {"weight": jnp.arange(3 * 64 * 32, dtype=jnp.float32).reshape(3, 64, 32)}}
    expected = jax.device_get(stacked["layers"]["weight"]).copy()
    start, size = stacked["layers"]["weight"].unsafe_buffer_pointer(), expected[0].nbytes
    layers = unstack_layers({"trunk": stacked}, in_place=True)["trunk"]
    del stacked
    jnp.zeros_like(expected).block_until_ready()  # would take the memory, were it free
    for i in range(3):
        leaf = layers[f"layers_{i}"]["weight"]
        assert leaf.unsafe_buffer_pointer() == start + i * size
        np.testing.assert_array_equal(leaf, expected[i])


@pytest.mark.parametrize(
    "mode, targets, joined",
    [
        ("full", (), {"qkv_proj", "gate_up_proj"}),
        ("lossless", ("q_proj", "down_proj"), {"gate_up_proj"}),
        ("shared", ("k_proj", "up_proj"), set()),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_joined_projections_are_those_of_the_model(mode, targets, joined, bias):
    """The tree that a joining model declares; projections with LoRA stay apart."""
    config = ModelConfig(vocab_size=V, num_layers=2, qkv_bias=bias, mlp_bias=bias)
    adaptation = AdaptationConfig(mode=mode, targets=targets or AdaptationConfig.targets)
    model = Transformer(config, StreamsConfig(2, 1, parent_rank=0, root_rank=0), False, adaptation)
    apart = filled(abstract_params(model))
    params = join_projections(apart)
    joining = model.clone(execution=Execution(joined_projections=True))
    assert {k: x.shape for k, x in flat(params).items()} == {
        k: x.shape for k, x in flat(abstract_params(joining)).items()
    }
    layer, before = (p["stream_layers"]["layers_0"] for p in (params, apart))
    owned = {*layer["attention"], *layer["mlp"]}
    assert {name for name in owned if name in ("qkv_proj", "gate_up_proj")} == joined
    if "gate_up_proj" in joined:
        np.testing.assert_array_equal(
            layer["mlp"]["gate_up_proj"]["weight"],
            np.concatenate([before["mlp"][n]["weight"] for n in ("gate_proj", "up_proj")]),
        )


def test_merge_restores_any_split_by_leaf():
    """Leaves dealt at random to two trees, at every depth of nesting."""
    params = filled(shapes_of(2))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rng = np.random.default_rng(5)

    def tree_of(chosen):
        tree = {}
        for path, leaf in chosen:
            at = tree
            for part in path[:-1]:
                at = at.setdefault(part.key, {})
            at[path[-1].key] = leaf
        return tree

    for share in (0.0, 0.3, 0.7, 1.0):
        picked = rng.random(len(leaves)) < share
        halves = [
            tree_of([x for x, p in zip(leaves, picked, strict=True) if p == side])
            for side in (True, False)
        ]
        kept = [flat(half) for half in halves]
        merged = flat(merge(*halves))
        assert merged.keys() == flat(params).keys()
        assert all(merged[key] is leaf for key, leaf in flat(params).items())
        for half, before in zip(halves, kept, strict=True):  # the inputs are not changed
            after = flat(half)
            assert after.keys() == before.keys() and all(after[k] is before[k] for k in before)


def test_merge_refuses_a_leaf_in_both_trees_at_any_depth():
    params = filled(shapes_of(2))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert len(leaves) > 15
    for path, leaf in leaves:
        nested = leaf
        for part in reversed(path):
            nested = {part.key: nested}
        with pytest.raises(ValueError, match=repr(path[-1].key)):
            merge(nested, params)
        with pytest.raises(ValueError, match=repr(path[-1].key)):
            merge(params, nested)
    with pytest.raises(ValueError, match="trunk"):
        merge({"trunk": jnp.zeros(1)}, params)  # a leaf where the other has a group
    with pytest.raises(ValueError, match="embedder"):
        merge({"embedder": {"weight": jnp.zeros(1)}}, params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_cast_changes_every_leaf_and_nothing_else(dtype):
    params = filled(shapes_of(2))
    narrow = flat(cast(params, dtype))
    assert narrow.keys() == flat(params).keys()
    for key, leaf in flat(params).items():
        assert narrow[key].dtype == dtype and leaf.dtype == jnp.float32
        np.testing.assert_array_equal(narrow[key], np.asarray(leaf).astype(dtype))


def test_the_head_is_tied_unless_it_has_a_table():
    tied, untied = filled(shapes_of(0)), filled(shapes_of(0, tie_embeddings=False))
    assert make_head(tied, ModelConfig()).table is tied["embedder"]
    assert make_head(untied, ModelConfig(tie_embeddings=False)).table is untied["lm_head"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
def test_a_leaf_with_a_value_that_is_not_finite_is_named(dtype, value):
    """3.4e38 is finite until it is rounded to bfloat16."""
    tree = {"a": {"b": jnp.ones((2, 3))}, "c": jnp.ones(4).at[1].set(value)}
    check_finite(tree["a"], "DIR")
    if value == 3.4e38 and dtype == jnp.float32:
        check_finite(cast(tree, dtype), "DIR")
        return
    with pytest.raises(UserError, match="DIR: parameter c holds a value that is not a finite num"):
        check_finite(cast(tree, dtype), "DIR")

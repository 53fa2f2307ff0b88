"""Weights in eight bits: what they are, and that a decoder with them decodes that model."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.models.execution import Execution
from ssjax.models.int8 import Int8, quantised, rows_of
from ssjax.models.projection import project

EXECUTIONS = (Execution(), Execution(few_rows_as_columns=True))


def by_numpy(weight):
    """The matrix that eight bits stand for, found another way: the nearest of all steps."""
    weight = np.asarray(weight, np.float32)
    steps = np.arange(-127, 128, dtype=np.float32)
    scale = np.abs(weight).max(axis=-1, keepdims=True) / np.float32(127)
    nearest = np.abs(weight[..., None] - steps * scale[..., None]).argmin(axis=-1)
    return steps[nearest] * scale


def test_the_nearest_step_of_each_row():
    weight = np.random.default_rng(0).standard_normal((3, 5, 40)).astype(np.float32)
    weight *= 10.0 ** np.arange(5)[:, None]  # rows do not disturb each other
    weight[1, 2] = 0
    found = quantised(jnp.asarray(weight))
    assert found.values.dtype == jnp.int8 and found.scale.shape == (3, 5)
    whole = np.asarray(found.values, np.float32) * np.asarray(found.scale)[..., None]
    np.testing.assert_allclose(whole, by_numpy(weight), rtol=1e-6)
    step = np.abs(weight).max(axis=-1, keepdims=True) / 127
    assert (np.abs(whole - weight) <= 0.5001 * step).all()
    assert not whole[1, 2].any()


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products(num_rows, execution, dtype):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((24, 16)).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((2, num_rows, 16)), dtype)
    expected = np.asarray(x, np.float32) @ by_numpy(weight).T
    eight = quantised(jnp.asarray(weight))
    found = project(x, eight, jnp.dtype(dtype), execution)
    assert found.dtype == dtype
    # In bfloat16 the eight bits are exact, the product is summed in float32 and rounded once.
    close = {"rtol": 2**-8 if dtype == "bfloat16" else 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, **close)


@pytest.mark.parametrize("num_rows", [24, 64, 96])  # in whole tiles, and not
@pytest.mark.parametrize("num_tokens", [6, 200])  # of a pass, and of a prompt
def test_rows_of_a_table(num_rows, num_tokens):
    rng = np.random.default_rng(2)
    table = rng.standard_normal((num_rows, 16)).astype(np.float32)
    tokens = rng.integers(0, num_rows, (2, num_tokens // 2))
    tokens[0, :2] = 0, num_rows - 1
    rows = jax.jit(rows_of, static_argnums=2)(quantised(jnp.asarray(table)), tokens, jnp.float32)
    np.testing.assert_allclose(rows, by_numpy(table)[tokens], rtol=1e-6)


def as_whole_numbers(tree, owner=""):
    """Parameters whose large matrices are what their eight bits stand for."""
    if not isinstance(tree, dict):
        return tree
    large = {"embedder", "lm_head"} | ({"weight"} if owner.endswith("_proj") else set())
    return {
        name: jnp.asarray(by_numpy(leaf)) if name in large else as_whole_numbers(leaf, name)
        for name, leaf in tree.items()
    }


@pytest.mark.parametrize(
    ("scan", "changes"),
    [
        pytest.param(True, {"tie_embeddings": True}, marks=pytest.mark.stress),
        pytest.param(False, {"tie_embeddings": False}, marks=pytest.mark.stress),
        (False, {"draft_vocab_size": 8, "draft_tokens": tuple(range(1, 16, 2))}),
    ],
)
def test_a_decoder_decodes_the_model_of_eight_bits(scan, changes):
    """The tokens, passes and probabilities of a model that holds those numbers in float32."""
    model = oracles.make_model(vocab_size=16, parent_rank=4, root_rank=4, **changes)
    params = oracles.random_params(model, seed=0)
    prompts = oracles.ragged_prompts(0, 8, longest=7, vocab_size=16)

    def decoded(params, int8, drafter):
        decoder = Decoder(
            model, params, eos_ids=(7,), pad_id=0, prompt_buckets=(8,), scan=scan, int8=int8
        )
        return decoder, oracles.generate(decoder, prompts, drafter, log_probs=True)

    drafter = BestFirstDrafter(5, 3)
    decoder, found = decoded(params, True, drafter)
    assert isinstance(decoder.params["embedder"], Int8)
    _, expected = decoded(as_whole_numbers(params), False, drafter)
    assert [c.runs for c in found] == [c.runs for c in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
    tokens = oracles.tokens_of(found)
    assert tokens == oracles.tokens_of(decoded(params, True, PlainDrafter())[1])
    _, whole = decoded(params, False, PlainDrafter())
    assert tokens != oracles.tokens_of(whole) or any(
        not np.allclose(a.log_probs, b.log_probs, atol=1e-4)
        for a, b in zip(found, whole, strict=True)
    )  # it is another model


def test_lora_and_what_streams_add_stay_whole():
    model = oracles.make_model(parent_rank=4, root_rank=4)
    params = oracles.random_params(model, seed=0)
    decoder = Decoder(model, params, eos_ids=(7,), pad_id=0, prompt_buckets=(8,), int8=True)
    eight = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            decoder.params, is_leaf=lambda x: isinstance(x, Int8)
        )
        if isinstance(leaf, Int8)
    ]
    layers = model.config.num_layers
    projections = 4 if decoder.model.execution.joined_projections else 7
    assert len(eight) == layers * projections + 1 + (not model.config.tie_embeddings)

"""The parent correction against NumPy, and what it cannot change."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.models.head import make_head, make_medusa_head
from ssjax.models.parameters import split
from ssjax.models.parent import candidate_logits, make_correction, with_parents

J, RANK, V = 3, 5, 13
KINDS = {
    "tied": {},
    "untied-bias-softcap": {
        "tie_embeddings": False,
        "head_bias": True,
        "logit_divisor": 1.5,
        "logit_softcap": 5.0,
    },
    "narrow-table": {"table_dim": 16},
    "medusa": {"num_streams": 0, "medusa_heads": J},
}


@pytest.fixture(params=KINDS, scope="module")
def made(request):
    """(model, parameters of float32) of a kind."""
    model = oracles.make_model(parent_rank=RANK, **KINDS[request.param])
    params = oracles.random_params(model, seed=1)
    return model, params


def ahead_of(model, params, seed=0):
    """Hidden states [2, J, D] of streams or heads that follow random tokens."""
    tokens = np.random.default_rng(seed).integers(0, V, (2, 6))
    if model.streams.medusa_heads:
        hidden = oracles.run_model(model, params, tokens).hidden[:, -1]
        return oracles.apply(model, params, "medusa", hidden)
    anchors = np.full((2, 1), 5)
    return oracles.run_model(model, params, tokens, anchors=anchors, num_streams=J).stream_hidden[
        :, 0
    ]


def logits_of(model, params, hidden):
    """[..., J, V] float64: the head, or each head's own."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    if model.streams.medusa_heads:
        return np.einsum("...qd,qvd->...qv", np.asarray(hidden, np.float64), params["medusa_head"])
    logits = np.asarray(hidden, np.float64) @ params.get("lm_head", params["embedder"]).T
    logits = (logits + params.get("lm_head_bias", 0.0)) / model.config.logit_divisor
    cap = model.config.logit_softcap
    return cap * np.tanh(logits / cap) if cap else logits


def by_numpy(params, hidden, parents):
    """The formula of models/parent.py, a stream at a time, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    hidden = np.asarray(hidden, np.float64)
    result = np.zeros_like(hidden)
    for place in np.ndindex(hidden.shape[:-1]):
        z, row = hidden[place], params["embedder"][parents[place]]
        row = row / np.sqrt((row**2).mean() + 1e-6)
        gate = params["parent_gate"][place[-1]] + params["parent_query"] @ z / np.sqrt(len(z))
        result[place] = z + params["parent_up"] @ ((params["parent_down"] @ row) * gate)
    return result


def test_corrected_states_equal_numpy(made):
    model, params = made
    hidden = ahead_of(model, params)
    parents = np.random.default_rng(3).integers(0, V, hidden.shape[:-1])
    found = with_parents(make_correction(params), hidden, jnp.asarray(parents))
    np.testing.assert_allclose(found, by_numpy(params, hidden, parents), atol=1e-4, rtol=1e-4)
    assert np.abs(np.asarray(found) - np.asarray(hidden)).max() > 0.1


def test_logits_of_candidates_are_those_of_the_whole_vocabulary(made):
    """Every parent and every candidate, in any order, with bias, softcap and heads of their own."""
    model, params = made
    hidden = ahead_of(model, params)
    rng = np.random.default_rng(4)
    parents = rng.permuted(np.tile(np.arange(V), (*hidden.shape[:-1], 1)), axis=-1)[..., :7]
    candidates = rng.permuted(np.tile(np.arange(V), (*hidden.shape[:-1], 1)), axis=-1)[..., :9]
    medusa = model.streams.medusa_heads
    head = make_medusa_head(params) if medusa else make_head(params, model.config)
    correction = make_correction(params)
    found = candidate_logits(
        correction, head, hidden, jnp.asarray(parents), jnp.asarray(candidates)
    )
    assert found.shape == (*hidden.shape[:-1], 7, 9) and found.dtype == jnp.float32
    for p in range(7):
        whole = logits_of(model, params, by_numpy(params, hidden, parents[..., p]))
        expected = np.take_along_axis(whole, candidates, axis=-1)
        np.testing.assert_allclose(found[..., p, :], expected, atol=1e-4, rtol=1e-4)


def test_untrained_correction_changes_nothing(made):
    model, params = made
    params = params | {"parent_up": jnp.zeros_like(params["parent_up"])}
    hidden = ahead_of(model, params)
    parents = jnp.zeros(hidden.shape[:-1], jnp.int32)
    found = with_parents(make_correction(params), hidden, parents)
    np.testing.assert_array_equal(found, hidden)


def test_fewer_streams_are_corrected_alike():
    model = oracles.make_model(parent_rank=RANK)
    params = oracles.random_params(model, seed=1)
    hidden = ahead_of(model, params)
    parents = jnp.asarray(np.random.default_rng(5).integers(0, V, hidden.shape[:-1]))
    whole = with_parents(make_correction(params), hidden, parents)
    fewer = with_parents(make_correction(params), hidden[:, :2], parents[:, :2])
    np.testing.assert_allclose(fewer, whole[:, :2], atol=1e-6)


def test_no_bit_of_a_main_logit_depends_on_it():
    model = oracles.make_model(parent_rank=RANK)
    params = oracles.random_params(model, seed=1)
    own, others = split(params, lambda path: path[0].startswith("parent_"))
    assert len(own) == 4
    changed = others | jax.tree.map(lambda x: x * 7 + 1, own)
    tokens = np.random.default_rng(6).integers(0, V, (3, 9))
    anchors = np.tile(np.arange(9), (3, 1))
    first, second = (
        oracles.run_model(model, p, tokens, anchors=anchors, num_streams=J)
        for p in (params, changed)
    )
    np.testing.assert_array_equal(
        oracles.logits_of(model, params, first.hidden),
        oracles.logits_of(model, changed, second.hidden),
    )
    np.testing.assert_array_equal(first.stream_hidden, second.stream_hidden)

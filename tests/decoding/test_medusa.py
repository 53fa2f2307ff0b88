"""Medusa heads: their mathematics, what they are trained to predict, and decoding with them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import generate, tokens_of

from ssjax.config import AdaptationConfig, LossConfig, OptimizerConfig
from ssjax.decoding.drafters import BestFirstDrafter
from ssjax.models.head import head_logits, make_medusa_head
from ssjax.models.lora import split_trainable
from ssjax.models.parameters import flatten, merge
from ssjax.training.losses import loss_sums, output_names
from ssjax.training.optimizer import make_optimizer
from ssjax.training.step import init_state, make_train_step


@pytest.fixture(scope="module")
def medusa():
    model = oracles.make_model(num_streams=0, medusa_heads=3)
    return model, oracles.random_params(model, seed=5)


def test_heads_equal_numpy(medusa):
    """Head k: vocabulary k times (h + silu(W_k h + b_k))."""
    model, params = medusa
    hidden = np.random.default_rng(0).normal(size=(2, 4, 24)).astype(np.float32)
    found = model.apply({"params": params}, hidden, method="medusa")
    logits = head_logits(found, make_medusa_head(params), model.execution)
    assert logits.shape == (2, 4, 3, 13)
    for k in range(3):
        inner = hidden @ np.asarray(params["medusa_weight"][k]).T + params["medusa_bias"][k]
        expected = (hidden + inner / (1 + np.exp(-inner))) @ np.asarray(params["medusa_head"][k]).T
        np.testing.assert_allclose(logits[:, :, k], expected, atol=oracles.LOGIT_TOLERANCE)


def test_losses_are_those_of_the_heads(medusa):
    """Head k at a position is scored on the token k after the next, over targets alone."""
    model, params = medusa
    tokens, lengths = oracles.pad(oracles.ragged_prompts(2, 5, shortest=6, longest=10), 10)
    prompt_lengths = np.array([1, 2, 3, 4, 5])
    batch = oracles.batch_of(tokens, prompt_lengths, lengths)
    sums = loss_sums(model, params, batch, 9, LossConfig(chunk_size=8))
    assert output_names(model.streams) == ("main", "head_1", "head_2", "head_3")
    output = oracles.run_model(model, params, tokens)
    heads = model.apply({"params": params}, output.hidden, method="medusa")
    logits = np.asarray(head_logits(heads, make_medusa_head(params), model.execution), np.float64)
    for k in range(3):
        total, count = 0.0, 0
        for row in range(5):
            for t in range(prompt_lengths[row] - 1, lengths[row] - 2 - k):
                scores = logits[row, t, k]
                total += np.log(np.exp(scores).sum()) - scores[tokens[row, t + 2 + k]]
                count += 1
        assert float(sums.weight[1 + k]) == count > 4
        np.testing.assert_allclose(float(sums.cross_entropy[1 + k]), total, rtol=1e-4)


def test_training_a_frozen_base(counting):
    """Only the heads change; they learn what comes k + 1 tokens later, and decoding gains by it."""
    _, base, _ = counting
    adaptation = AdaptationConfig(mode="lossless")
    model = oracles.make_model(num_streams=0, medusa_heads=3, adaptation=adaptation)
    params = jax.tree.map(jnp.zeros_like, oracles.random_params(model, seed=1))
    params |= {k: v for k, v in base.items() if k != "stream_embedding"}
    params["medusa_head"] = jnp.stack([base["embedder"]] * 3)
    trainable, frozen = split_trainable(params, adaptation)
    assert set(flatten(trainable)) == {"medusa_weight", "medusa_bias", "medusa_head"}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-2, warmup_steps=5), 120)
    loss = LossConfig(main_weight=0.0, stream_weight=1.0)
    step = jax.jit(make_train_step(model, optimizer, loss, num_anchors=9, accumulation=1))
    state = init_state(trainable, optimizer)
    for number in range(120):
        state, metrics = step(state, frozen, oracles.counting_batch(number))
    accuracy = np.asarray(metrics.sums.correct / metrics.sums.weight)
    assert accuracy[1:].min() > 0.98, accuracy
    trained = merge(state.params, frozen)
    decoder = oracles.make_decoder(model, trained)
    prompts = [[start, start + 1] for start in range(10)]
    drafter = BestFirstDrafter(3, 0, num_heads=3)
    found = generate(decoder, prompts, drafter, max_new_tokens=9)
    counted = [tuple((start + 2 + n) % 13 for n in range(9)) for start in range(10)]
    assert tokens_of(found) == counted
    assert [completion.runs for completion in found] == [(1, 4, 4)] * 10

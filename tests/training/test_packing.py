"""Packed rows train as their sequences do one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import LossConfig
from ssjax.training.losses import Batch, loss_sums, output_offsets, target_weight, token_positions

SEQUENCES = [([5, 1, 2], [8, 9, 2]), ([7], [4, 0, 6, 1, 2]), ([3, 3, 0, 4], [1]), ([1, 2], [2, 2])]
ROWS = ((0, 1), (2, 3))  # by row, its sequences


def alone():
    tokens, lengths = oracles.pad([p + t for p, t in SEQUENCES], 8)
    return oracles.batch_of(tokens, [len(p) for p, _ in SEQUENCES], lengths)


def packed(width=14):
    tokens, segments = np.zeros((2, width), np.int32), np.zeros((2, width), np.int32)
    is_target = np.zeros((2, width), bool)
    for row, numbers in enumerate(ROWS):
        start = 0
        for place, number in enumerate(numbers, start=1):
            prompt, target = SEQUENCES[number]
            end = start + len(prompt) + len(target)
            tokens[row, start:end] = prompt + target
            segments[row, start:end] = place
            is_target[row, start + len(prompt) : end] = True
            start = end
    return Batch(*map(jnp.asarray, (tokens, segments, is_target)), packed=True)


def test_positions_begin_anew_with_every_sequence():
    expected = [[*range(6), *range(6), 0, 1], [*range(5), *range(4), *range(5)]]
    np.testing.assert_array_equal(token_positions(packed()), expected)


@pytest.mark.parametrize("main_reads_streams", [False, True])
def test_sums_and_gradients_equal_those_of_single_rows(main_reads_streams):
    model = oracles.make_model(main_reads_streams=main_reads_streams, exit_rank=2)
    params = oracles.random_params(model, seed=0, table_scale=0.4)
    alphas = jnp.linspace(1.0, 0.4, len(output_offsets(model.streams)))

    def total(params, batch, num_anchors):
        sums = loss_sums(model, params, batch, num_anchors, LossConfig(chunk_size=4))
        return jnp.sum(alphas * sums.cross_entropy), sums

    measure = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=2)
    (ours, our_sums), our_grads = measure(params, packed(), 9)
    (theirs, their_sums), their_grads = measure(params, alone(), 5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert float(our_sums.weight[0]) == 11
    for x, y in zip(jax.tree.leaves(our_sums), jax.tree.leaves(their_sums), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(our_grads), jax.tree.leaves(their_grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * float(jnp.abs(y).max() + 1))


# Two answers in one row, with a gap that the streams reach over, and the same answers one by one.
CONVERSATION = [([5, 1], [8, 9, 2]), ([7], [4, 0, 6])]


def conversation():
    tokens = [token for prompt, target in CONVERSATION for token in prompt + target]
    is_target = np.isin(np.arange(len(tokens)), [2, 3, 4, 6, 7, 8])
    rows = np.array([tokens] * 2), np.ones((2, len(tokens)), int), np.array([is_target] * 2)
    return Batch(*map(jnp.asarray, rows))


def answers_one_by_one():
    (prompt, target), (between, last) = CONVERSATION
    rows = [(prompt, target), (prompt + target + between, last)] * 2
    tokens, lengths = oracles.pad([p + t for p, t in rows], 9)
    return oracles.batch_of(tokens, [len(p) for p, _ in rows], lengths)


def test_answers_in_one_row_train_as_they_do_one_by_one():
    """Sums and gradients; no stream predicts an answer from before its question."""
    model = oracles.make_model()
    params = oracles.random_params(model, seed=0, table_scale=0.4)
    offsets = output_offsets(model.streams)

    def total(params, batch):
        sums = loss_sums(model, params, batch, 6, LossConfig(chunk_size=4))
        return jnp.sum(sums.cross_entropy), sums

    measure = jax.jit(jax.value_and_grad(total, has_aux=True))
    (ours, our_sums), our_grads = measure(params, conversation())
    (theirs, their_sums), their_grads = measure(params, answers_one_by_one())
    assert max(offsets) > len(CONVERSATION[1][0])
    np.testing.assert_array_equal(our_sums.weight, their_sums.weight)
    for batch in (conversation(), answers_one_by_one()):
        np.testing.assert_array_equal(target_weight(batch, offsets), our_sums.weight)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(our_grads), jax.tree.leaves(their_grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * float(jnp.abs(y).max() + 1))


def test_weights_are_known_before_the_model_runs():
    offsets = (0, 1, 2, 3, 0)
    np.testing.assert_array_equal(target_weight(packed(), offsets), target_weight(alone(), offsets))
    np.testing.assert_array_equal(target_weight(packed(), offsets), [11, 7, 4, 2, 11])

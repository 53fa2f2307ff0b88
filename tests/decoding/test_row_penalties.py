"""Penalties by row against NumPy, token by token, and against those of one setting for all."""

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.decoding.row_penalties import penalise, penalties_of, with_output, with_prompts
from ssjax.decoding.sampling import Sampling, adjust, extend_history, start_history
from ssjax.decoding.tree import DraftTree

VOCAB = 11
# Repetition, presence, frequency.
ROWS = ((1.0, 0.0, 0.0), (1.5, 0.0, 0.0), (0.7, 1.0, 0.0), (1.0, -2.0, 0.5), (2.0, 0.3, -0.4))
#        root, its children 1 and 4, two below 1, one unused
PARENT = (-1, 0, 1, 2, 0, -1)
DEPTH = (0, 1, 2, 3, 1, 0)
PATHS = ((), (1,), (1, 2), (1, 2, 3), (4,), ())


def world(seed):
    rng = np.random.default_rng(seed)
    batch = len(ROWS)
    prompts = rng.integers(0, VOCAB, (batch, 4)).astype(np.int32)
    lengths = np.array([1, 2, 3, 4, 2], np.int32)
    output = rng.integers(0, VOCAB, (batch, 5)).astype(np.int32)
    emitted = np.arange(5) < rng.integers(0, 6, (batch, 1))
    shape = (batch, len(PARENT))
    tokens = rng.integers(0, VOCAB, shape).astype(np.int32)
    parent, depth = (np.broadcast_to(np.array(x, np.int32), shape) for x in (PARENT, DEPTH))
    tree = DraftTree(*(jnp.array(x) for x in (tokens, parent, depth)))
    logits = rng.normal(size=(*shape, VOCAB)).astype(np.float32) * 3
    return prompts, lengths, output, emitted, tree, logits


def test_every_row_is_penalised_as_it_asks():
    for seed in range(2):
        prompts, lengths, output, emitted, tree, logits = world(seed)
        rows = [penalties_of(*row) for row in ROWS]
        penalties = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
        penalties = with_prompts(penalties, prompts, lengths, VOCAB)
        penalties = with_output(penalties, output, emitted)
        found = np.asarray(penalise(jnp.array(logits), penalties, tree, max_depth=3))
        for row, (repetition, presence, frequency) in enumerate(ROWS):
            for node, path in enumerate(PATHS):
                written = [*output[row, emitted[row]], *(tree.tokens[row, each] for each in path)]
                written = [int(token) for token in written]
                expected = logits[row, node].astype(np.float64)
                for token in {*prompts[row, : lengths[row]].tolist(), *written}:
                    factor = repetition if expected[token] < 0 else 1 / repetition
                    expected[token] *= factor
                for token in set(written):
                    expected[token] -= presence + frequency * written.count(token)
                np.testing.assert_allclose(found[row, node], expected, rtol=1e-6, atol=1e-6)
            if (repetition, presence, frequency) == (1, 0, 0):
                assert (found[row] == logits[row]).all()


def test_the_same_penalties_as_of_one_setting_for_all_to_the_bit():
    prompts, lengths, output, emitted, tree, logits = world(9)
    sampling = Sampling(repetition_penalty=1.3, presence_penalty=0.7)
    history = extend_history(start_history(sampling, prompts, lengths, VOCAB), output, emitted)
    length = jnp.array(lengths + emitted.sum(axis=1), jnp.int32)
    expected = adjust(jnp.array(logits), sampling, history, tree, length, (), 3)
    rows = [penalties_of(1.3, 0.7, 0.0)] * len(ROWS)
    penalties = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    penalties = with_output(with_prompts(penalties, prompts, lengths, VOCAB), output, emitted)
    found = penalise(jnp.array(logits), penalties, tree, 3)
    np.testing.assert_array_equal(found, expected)

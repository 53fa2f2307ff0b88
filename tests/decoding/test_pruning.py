"""Tree pruning by the early exit: which nodes stay, by brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import TableDrafter, generate, tokens_of, truth_table

from ssjax.decoding.drafters import PlainDrafter
from ssjax.decoding.pruning import joint_log_probs, prune
from ssjax.decoding.tree import DraftTree, ancestor_mask

NEW, VOCAB = 12, 7


def random_tree(rng, num_nodes, batch):
    """Trees with unused nodes among the others."""
    parent = np.full((batch, num_nodes), -1, np.int32)
    depth = np.zeros((batch, num_nodes), np.int32)
    for row, node in itertools.product(range(batch), range(1, num_nodes)):
        used = [k for k in range(node) if k == 0 or parent[row, k] >= 0]
        if rng.random() < 0.8:
            parent[row, node] = rng.choice(used)
            depth[row, node] = depth[row, parent[row, node]] + 1
    tokens = rng.integers(0, VOCAB, parent.shape).astype(np.int32)
    return DraftTree(*map(jnp.asarray, (tokens, parent, depth)))


@pytest.mark.parametrize(
    "num_kept, threshold", [(1, 0.0), (4, 0.0), (7, 0.0), (9, 0.0), (4, 0.1), (9, 0.3)]
)
def test_keeps_the_likeliest_paths(num_kept, threshold):
    """Against the sum along each path in float64, and a sort of all nodes."""
    rng = np.random.default_rng(num_kept)
    tree = random_tree(rng, 9, batch=40)
    logits = rng.normal(size=(40, 9, VOCAB)).astype(np.float32) * 3
    logits[::2] = 0.0
    logits[::2, :, 0] = 40.0  # certain: children as likely as their parents
    mask = ancestor_mask(tree.parent, 8)
    joint = np.asarray(joint_log_probs(tree, mask, jnp.asarray(logits), threshold))
    pruned, kept = jax.jit(prune, static_argnums=2)(tree, jnp.asarray(joint), num_kept)
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    for row in range(40):
        parent, tokens = np.asarray(tree.parent[row]), np.asarray(tree.tokens[row])
        expected = np.full(9, -np.inf)
        expected[0] = 0.0
        for node in range(1, 9):
            if parent[node] >= 0:
                own = log_probs[row, parent[node], tokens[node]]
                if np.exp(own) >= threshold:
                    expected[node] = expected[parent[node]] + own
        np.testing.assert_allclose(joint[row], expected, atol=1e-4)
        places = kept[row].tolist()
        assert places == sorted(set(places)) and places[0] == 0
        left = sorted(expected, reverse=True)[:num_kept]
        np.testing.assert_allclose(np.sort(expected[places])[::-1], left, atol=1e-4)
        for new, old in enumerate(places):
            assert pruned.tokens[row, new] == tokens[old]
            above, dropped = pruned.parent[row, new], np.isinf(expected[old])
            assert pruned.depth[row, new] == (0 if dropped else tree.depth[row, old])
            assert (above == -1) == (old == 0 or dropped)
            if above >= 0:
                assert places[int(above)] == parent[old]


def test_fewer_nodes_make_shorter_runs():
    """Pruned to as many nodes as there are, nothing is lost; to two, no run is longer than 3."""
    model = oracles.make_model(exit_rank=2)
    decoder = oracles.make_decoder(model, oracles.random_params(model, seed=3))
    prompts = oracles.ragged_prompts(6, 16)
    outputs = tokens_of(generate(decoder, prompts, PlainDrafter(), max_new_tokens=NEW))
    truth = truth_table(prompts, outputs, 24)
    parents = np.array([[-1, 0, 0, 0, 1, 1, 4]], np.int32)
    offset = np.array([[0, 0, 1, 2, 0, 3, 0]], np.int32)

    def runs(kept, threshold=0.0):
        settings = {"kept_nodes": kept, "exit_threshold": threshold}
        drafter = type("Pruned", (TableDrafter,), settings)(truth, offset, parents)
        completions = generate(decoder, prompts, drafter, max_new_tokens=NEW)
        assert tokens_of(completions) == outputs
        return [completion.runs for completion in completions]

    everything = runs(0)
    assert {run for row in everything for run in row[1:-1]} == {4}  # always right, 3 deep
    assert runs(6) == everything
    lengths = {run for row in runs(2) for run in row[1:-1]}
    assert max(lengths) <= 3 and len(lengths) > 1  # what stays is the early exit's choice
    assert runs(0, threshold=1e-9) == everything
    assert {run for row in runs(0, threshold=0.999) for run in row[1:]} == {1}  # all are dropped

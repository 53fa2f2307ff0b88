"""Draft trees against brute force: masks over all small trees, best nodes over all paths."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.decoding.candidates import independent
from ssjax.decoding.tree import (
    NO_PARENT,
    DraftTree,
    StaticTree,
    ancestor_mask,
    best_first_tree,
    path_tokens,
    root_only,
    static_tree,
)

SCORE_TOLERANCE = 1e-5


def depths_of(parents):
    depths = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def log_probs_of(seed, batch, num_streams, vocab_size):
    logits = np.random.default_rng(seed).normal(size=(batch, num_streams, vocab_size)) * 2
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5])
def test_ancestor_mask_of_all_trees(num_nodes):
    """Every parent vector; -1 after the root is an unused node (or another root)."""
    choices = [(-1,)] + [range(-1, node) for node in range(1, num_nodes)]
    parents = np.array(list(itertools.product(*choices)))
    assert len(parents) == np.prod([len(c) for c in choices])
    expected = np.zeros((len(parents), num_nodes, num_nodes), bool)
    for row, vector in enumerate(parents):
        for node in range(num_nodes):
            seen = node
            while seen >= 0:
                expected[row, node, seen] = True
                seen = vector[seen]
    for max_depth in (num_nodes - 1, num_nodes + 2):
        mask = ancestor_mask(jnp.asarray(parents, jnp.int32), max_depth)
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("num_nodes", [1, 2, 4, 5])
def test_path_tokens_of_all_trees(num_nodes):
    """Nodes below an unused node are unused too."""
    choices = [(-1,)] + [range(-1, node) for node in range(1, num_nodes)]
    trees = [
        parents
        for parents in itertools.product(*choices)
        if all(parent <= 0 or parents[parent] >= 0 for parent in parents)
    ]
    tokens = np.random.default_rng(0).integers(0, 9, (len(trees), num_nodes)).astype(np.int32)
    max_depth = num_nodes
    expected = np.full((len(trees), num_nodes, max_depth), -1)
    for row, parents in enumerate(trees):
        for node in range(num_nodes):
            path, at = [], node
            while at > 0 and parents[at] >= 0:
                path.append(tokens[row, at])
                at = parents[at]
            expected[row, node, : len(path)] = path
    tree = DraftTree(
        *(jnp.asarray(x, jnp.int32) for x in (tokens, trees, [depths_of(t) for t in trees]))
    )
    np.testing.assert_array_equal(path_tokens(tree, max_depth), expected)
    assert path_tokens(tree, 0).shape == (len(trees), num_nodes, 0)


def test_root_only():
    tree = root_only(jnp.array([4, 0], jnp.int32))
    assert tree.tokens.tolist() == [[4], [0]]
    assert tree.parent.tolist() == [[-1], [-1]] and tree.depth.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    "parents, ranks, message",
    [
        ((), (), "root"),
        ((-1, 0), (0,), "one parent and one rank"),
        ((0,), (0,), "node 0 is the root"),
        ((-1, -1), (0, 0), "node 1 has parent -1"),
        ((-1, 1), (0, 0), "node 1 has parent 1"),
        ((-1, 2, 0), (0, 0, 0), "node 1 has parent 2"),
        ((-1, 0, 0), (0, 1, 1), "different ranks"),
        ((-1, 0), (0, -1), "different ranks, 0 or more"),
    ],
)
def test_static_tree_refuses(parents, ranks, message):
    with pytest.raises(ValueError, match=message):
        StaticTree(parents, ranks)


@pytest.mark.parametrize("branching, nodes", [((3, 3, 3), 40), ((1, 1), 3), ((2, 3), 9), ((), 1)])
def test_from_branching(branching, nodes):
    tree = StaticTree.from_branching(branching)
    assert (
        tree.num_nodes
        == nodes
        == 1 + sum(int(np.prod(branching[: d + 1])) for d in range(len(branching)))
    )
    assert tree.max_depth == len(branching)
    assert tree.depths.tolist() == depths_of(tree.parents)
    paths = set()
    for node in range(nodes):
        path = []
        while node > 0:
            path.insert(0, tree.ranks[node])
            node = tree.parents[node]
        paths.add(tuple(path))
    levels = [itertools.product(*map(range, branching[:d])) for d in range(len(branching) + 1)]
    assert paths == {path for level in levels for path in level}


def test_static_tree_holds_the_ranked_tokens():
    shape = StaticTree((-1, 0, 0, 1, 3, 2), (0, 2, 0, 1, 0, 3))
    log_probs = log_probs_of(0, 3, 4, 11)
    tree = static_tree(shape, jnp.array([7, 8, 9]), independent(jnp.asarray(log_probs), 4))
    order = np.argsort(-log_probs, axis=-1, kind="stable")
    for row in range(3):
        assert tree.tokens[row, 0] == 7 + row
        for node in range(1, shape.num_nodes):
            best = order[row, shape.depths[node] - 1]
            assert tree.tokens[row, node] == best[shape.ranks[node]]
        assert tree.parent[row].tolist() == list(shape.parents)
        assert tree.depth[row].tolist() == [0, 1, 1, 2, 3, 2]
    assert (tree.tokens[0] != tree.tokens[1]).any()


def test_static_tree_ranks_past_the_vocabulary_are_unused():
    """Rank 3 of 3 tokens does not exist; neither do the nodes below it."""
    shape = StaticTree((-1, 0, 0, 2, 1, 3), (0, 2, 3, 0, 1, 0))
    tree = static_tree(shape, jnp.array([1]), independent(jnp.asarray(log_probs_of(1, 1, 3, 3)), 3))
    assert tree.parent.tolist() == [[-1, 0, -1, -1, 1, -1]]
    assert tree.depth.tolist() == [[0, 1, 0, 0, 2, 0]]


def test_static_tree_deeper_than_streams_is_refused():
    with pytest.raises(ValueError, match="3 deep but there are 2 streams"):
        static_tree(
            StaticTree.from_branching((1, 1, 1)),
            jnp.array([1]),
            independent(jnp.zeros((1, 2, 5)), 1),
        )


def paths_of(tree, row):
    """Path (tokens from below the root) of each used node."""
    tokens, parents = np.asarray(tree.tokens[row]), np.asarray(tree.parent[row])
    paths = {0: ()}
    for node in range(1, len(tokens)):
        if parents[node] >= 0:
            assert parents[node] < node and parents[node] in paths  # parents first, and used
            paths[node] = paths[int(parents[node])] + (int(tokens[node]),)
    return paths


def score(log_probs, path):
    return float(sum(log_probs[d, token] for d, token in enumerate(path)))


@pytest.mark.parametrize(
    "vocab_size, num_streams, budget",
    [(5, 3, 1), (5, 3, 4), (5, 3, 20), (4, 3, 60), (7, 1, 3), (3, 2, 5), (3, 2, 12), (2, 3, 40)],
)
def test_best_first_equals_all_paths_sorted(vocab_size, num_streams, budget):
    batch = 4
    log_probs = log_probs_of(budget, batch, num_streams, vocab_size)
    root = np.arange(batch, dtype=np.int32) + 1
    grow = functools.partial(best_first_tree, num_draft_nodes=budget)
    tree = jax.jit(grow)(root, independent(log_probs, min(budget, vocab_size)))
    assert tree.tokens.shape == tree.parent.shape == tree.depth.shape == (batch, 1 + budget)
    candidates = [
        path
        for d in range(1, num_streams + 1)
        for path in itertools.product(range(vocab_size), repeat=d)
    ]
    possible = min(budget, len(candidates))
    for row in range(batch):
        paths = paths_of(tree, row)
        assert len(paths) == 1 + possible == len(set(paths.values()))  # no path twice
        assert int(tree.tokens[row, 0]) == root[row] and int(tree.parent[row, 0]) == NO_PARENT
        for node in range(1 + budget):
            depth = len(paths[node]) if node in paths else 0
            assert int(tree.depth[row, node]) == depth
        got = [score(log_probs[row], paths[node]) for node in sorted(paths) if node]
        best = sorted((score(log_probs[row], path) for path in candidates), reverse=True)
        np.testing.assert_allclose(got, best[:possible], atol=SCORE_TOLERANCE)
        np.testing.assert_array_equal(tree.parent[row, 1 + possible :], NO_PARENT)
    assert len({tuple(x) for x in np.asarray(tree.tokens)[:, 1:].tolist()}) > 1


def test_best_first_with_ties_is_a_tree_of_best_scores():
    """All tokens equal, and a certain token: a child as good as its parent."""
    vocab_size, num_streams = 4, 3
    flat = np.full((num_streams, vocab_size), -np.log(vocab_size), np.float32)
    certain = np.full((num_streams, vocab_size), -1e9, np.float32)
    certain[:, 2] = 0.0
    log_probs = np.stack([flat, certain])
    for budget in (1, 3, 6, 30):
        scores = independent(jnp.asarray(log_probs), min(budget, vocab_size))
        tree = best_first_tree(jnp.array([0, 0], jnp.int32), scores, budget)
        candidates = [
            path
            for d in range(1, num_streams + 1)
            for path in itertools.product(range(vocab_size), repeat=d)
        ]
        for row in range(2):
            paths = paths_of(tree, row)
            assert len(set(paths.values())) == 1 + budget
            got = [score(log_probs[row], paths[node]) for node in sorted(paths) if node]
            best = sorted((score(log_probs[row], path) for path in candidates), reverse=True)
            np.testing.assert_allclose(got, best[:budget], rtol=SCORE_TOLERANCE)
        if budget >= num_streams:
            assert (2, 2, 2) in paths.values()

"""Acceptance and emission against a walk in plain Python, over random trees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssjax.decoding.acceptance import Acceptance, accept, emit
from ssjax.decoding.tree import NO_TOKEN, DraftTree

BATCH, NODES, MAX_DEPTH, VOCAB = 4096, 10, 4, 4  # few tokens: duplicates, long paths
EOS = (2, 9)


def random_trees(seed, unused=0.25):
    """Arrays tokens, parent, depth [B, M]; an unused node has parent -1, token 0, depth 0."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (BATCH, NODES))
    parent = np.full((BATCH, NODES), -1)
    depth = np.zeros((BATCH, NODES), int)
    for row in range(BATCH):
        for node in range(1, NODES):
            above = rng.integers(0, node)
            # Only the root and used nodes of room below may have children.
            usable = (above == 0 or parent[row, above] >= 0) and depth[row, above] < MAX_DEPTH
            if not usable or rng.random() < unused:
                tokens[row, node] = 0
            else:
                parent[row, node], depth[row, node] = above, depth[row, above] + 1
    return tokens, parent, depth


def walk(tokens, parent, drawn):
    """Nodes from the root down, the first child wins."""
    path = [0]
    while True:
        token = drawn[path[-1]]
        children = [n for n in range(NODES) if parent[n] == path[-1] and tokens[n] == token]
        if not children:
            return path
        path.append(children[0])


@pytest.fixture(scope="module")
def case():
    tokens, parent, depth = random_trees(0)
    drawn = np.random.default_rng(1).integers(0, VOCAB, (BATCH, NODES))
    tree = DraftTree(*(jnp.asarray(x, jnp.int32) for x in (tokens, parent, depth)))
    paths = [walk(*row) for row in zip(tokens, parent, drawn, strict=True)]
    acceptance = jax.jit(functools.partial(accept, max_depth=MAX_DEPTH))(
        tree, jnp.asarray(drawn, jnp.int32)
    )
    return tokens, parent, drawn, paths, acceptance


def test_accept_equals_a_python_walk(case):
    _, _, _, paths, acceptance = case
    assert {len(path) for path in paths} == set(range(1, MAX_DEPTH + 2))
    np.testing.assert_array_equal(acceptance.num_accepted, [len(path) - 1 for path in paths])
    padded = [path + [path[-1]] * (MAX_DEPTH + 1 - len(path)) for path in paths]
    np.testing.assert_array_equal(acceptance.path, padded)


def test_unused_nodes_are_never_reached(case):
    """Though their token 0 is what was drawn in many a place."""
    tokens, parent, drawn, _, acceptance = case
    unused = (parent < 0) & (np.arange(NODES) > 0)
    tempting = unused & (drawn[:, :1] == 0)
    assert tempting.any(axis=1).sum() > BATCH // 10
    reached = np.take_along_axis(unused, np.asarray(acceptance.path), axis=1)
    assert not reached.any()


def test_first_of_equal_children_wins():
    tree = DraftTree(
        tokens=jnp.array([[1, 5, 5, 6, 6]]),
        parent=jnp.array([[-1, 0, 0, 1, 2]]),
        depth=jnp.array([[0, 1, 1, 2, 2]]),
    )
    acceptance = accept(tree, jnp.array([[5, 6, 6, 0, 0]]), max_depth=2)
    assert acceptance.path.tolist() == [[0, 1, 3]]
    assert acceptance.num_accepted.tolist() == [2]


def test_plain_tree_accepts_nothing():
    tree = DraftTree(jnp.array([[0]]), jnp.array([[-1]]), jnp.array([[0]]))
    acceptance = accept(tree, jnp.array([[0]]), max_depth=0)
    assert acceptance.path.tolist() == [[0]] and acceptance.num_accepted.tolist() == [0]


@pytest.mark.parametrize("eos_ids", [EOS, (9,), (0, 1, 2, 3)])
def test_emit_equals_python(case, eos_ids):
    _, _, drawn, paths, acceptance = case
    rng = np.random.default_rng(2)
    length = rng.integers(1, 20, BATCH)
    done = rng.random(BATCH) < 0.2
    limit = length + np.where(done, rng.integers(0, 3, BATCH), rng.integers(1, 8, BATCH))
    finite = rng.random((BATCH, NODES)) < 0.9
    found = np.where(finite, drawn, NO_TOKEN)
    arrays = (jnp.asarray(x, jnp.int32) for x in (found, length, limit))
    emission = jax.jit(functools.partial(emit, eos_ids=eos_ids))(
        acceptance, *arrays, jnp.asarray(done)
    )
    ways = set()
    emitted, count, ended, broken = (
        np.asarray(x) for x in (emission.tokens, emission.count, emission.done, emission.broken)
    )
    broken_at = set()
    for row, path in enumerate(paths):
        expected, end, stuck = [], bool(done[row]), False
        if not done[row]:
            for node in path:
                if not finite[row, node]:
                    stuck = True
                    broken_at.add(len(expected))
                    break
                expected.append(int(drawn[row, node]))
                stop = expected[-1] in eos_ids
                full = length[row] + len(expected) == limit[row]
                if stop or full:
                    ways.add((stop, full, len(expected) < len(path)))
                    end = True
                    break
        assert count[row] == len(expected)
        assert emitted[row, : len(expected)].tolist() == expected
        assert (ended[row], broken[row]) == (end, stuck)
    if eos_ids == EOS:  # by an id, by the limit, by both; inside a run and at its end
        assert len(ways) == 6 and broken_at >= {0, 1, 2}


def test_end_of_sequence_after_the_path_does_not_count():
    """Entries of the path past num_accepted repeat its last node: drawn there, not emitted."""
    acceptance = Acceptance(jnp.array([[0, 0, 0]]), jnp.array([0]))
    drawn = jnp.array([[5, 9, 9]])
    emission = emit(acceptance, drawn, jnp.array([3]), jnp.array([9]), jnp.array([False]), (9,))
    assert (emission.count.tolist(), emission.done.tolist()) == ([1], [False])
    assert emission.tokens[0, 0] == 5

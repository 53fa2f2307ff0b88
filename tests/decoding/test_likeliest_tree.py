"""The static tree that a table of acceptance asks for."""

import itertools

import numpy as np
import pytest

from ssjax.decoding.likeliest_tree import likeliest_static_tree
from ssjax.decoding.tree import StaticTree

pytestmark = pytest.mark.stress


def all_trees(num_streams, num_ranks, num_nodes):
    """Every set of `num_nodes` paths (tuples of ranks) that is closed under ancestors."""
    paths = [
        p for d in range(1, num_streams + 1) for p in itertools.product(range(num_ranks), repeat=d)
    ]
    for chosen in itertools.combinations(paths, num_nodes):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            yield chosen


def paths_of(tree):
    paths = [()]
    for parent, rank in zip(tree.parents[1:], tree.ranks[1:], strict=True):
        paths.append((*paths[parent], rank))
    return paths[1:]


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (3, 2)])
def test_static_tree_is_the_best_of_all(shape, num_nodes):
    rng = np.random.default_rng(num_nodes)
    for _ in range(10):
        acceptance = rng.dirichlet(np.full(shape[1] + 1, 0.5), shape[0])[:, : shape[1]]
        acceptance = np.maximum(acceptance, 1e-6)

        def worth(paths, acceptance=acceptance):
            return sum(np.prod([acceptance[d, r] for d, r in enumerate(p)]) for p in paths)

        found = paths_of(likeliest_static_tree(acceptance, num_nodes))
        trees = list(all_trees(*shape, num_nodes))
        if not trees:  # a single level of three ranks has no four nodes
            assert num_nodes > shape[1] and len(found) == shape[1]
            continue
        assert worth(found) == pytest.approx(max(map(worth, trees)), rel=1e-12)
        assert len(found) == num_nodes


def test_static_tree_leaves_out_what_was_never_accepted():
    tree = likeliest_static_tree(np.array([[0.5, 0.0, 0.2], [1.0, 0.0, 0.0]]), 9)
    assert sorted(paths_of(tree)) == [(0,), (0, 0), (2,), (2, 0)]
    assert likeliest_static_tree(np.zeros((2, 3)), 4) == StaticTree((-1,), (0,))

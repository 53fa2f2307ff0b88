"""Passes over sequences, after a cache and over draft trees, against logits of transformers."""

import dataclasses
import functools

import family_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny_models
import torch_models
from family_cases import NUM_STREAMS
from oracles import LOGIT_TOLERANCE

from ssjax.decoding.tree import NO_PARENT, ancestor_mask
from ssjax.models.attention import Causal
from ssjax.models.cache import cache_from_block

# How much of each row is cached when its rest, or a draft tree, follows. Chains in the trees and
# the rests are longer than the windows, so they leave them on both sides of the border.
CUTS = (29, 12, 4, 0)
NUM_NODES = 16
DEEP = 8
CAPACITY = 45  # slots of the cache, the longest row


@dataclasses.dataclass
class Tree:
    """A random draft tree; its root is the first token of a row that is not cached."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    paths: list[list[int]]  # tokens from below the root to each leaf
    places: list[tuple[int, int]]  # of each used node: a path through it, and its depth


def random_tree(rng, root, vocab_size, used):
    """A chain deeper than the windows with branches; nodes from `used` on are unused."""
    parents = [*range(NO_PARENT, DEEP), *(int(rng.integers(0, n)) for n in range(DEEP + 1, used))]
    tokens = [root, *rng.integers(0, vocab_size, used - 1).tolist()]
    routes = [[]]
    for node in range(1, used):
        routes.append([*routes[parents[node]], node])
    leaves = sorted(set(range(used)) - set(parents))
    unused = NUM_NODES - used
    return Tree(
        tokens + [0] * unused,
        parents + [NO_PARENT] * unused,
        [len(route) for route in routes] + [0] * unused,
        [[tokens[node] for node in routes[leaf]] for leaf in leaves],
        [
            (next(i for i, leaf in enumerate(leaves) if node in [0, *routes[leaf]]), len(route))
            for node, route in enumerate(routes)
        ],
    )


@functools.partial(jax.jit, static_argnums=0)
def run_passes(model, params, sequences, lengths, rest, trees):
    """All passes of a family in one compiled program.

    Args:
      model, params: scanned form.
      sequences: [S, T], the rows first, then each path of each tree after its prefix.
      lengths: [S].
      rest: [B, M], the rows from their cuts on.
      trees: nodes, parents and depths, each [B, M].

    Returns:
      whole: [S, T, V] logits of the sequences, without a cache.
      whole_streams: [S, J, V] of the streams at their last tokens.
      rest: [B, M, V] after the cached part of each row.
      nodes: [B, M, V] of the trees there.
      node_streams: [B, M, J, V] of the streams beside the nodes.
    """
    nodes, parents, depths = trees
    num_rows = len(CUTS)

    def apply(*arguments, **kwargs):
        return model.apply({"params": params}, *arguments, num_streams=NUM_STREAMS, **kwargs)

    def logits(hidden):
        return model.apply({"params": params}, hidden, method="logits")

    width = sequences.shape[1]
    positions = jnp.broadcast_to(jnp.arange(width), sequences.shape)
    whole = apply(sequences, positions, Causal().dense(width), anchors=lengths[:, None] - 1)

    twice, length = jnp.array([*range(num_rows)] * 2), jnp.array(CUTS * 2)
    block = jax.tree.map(lambda x: x[:, twice], whole.block)
    chain = jnp.broadcast_to(Causal().dense(NUM_NODES), (num_rows, NUM_NODES, NUM_NODES))
    every = jnp.broadcast_to(jnp.arange(NUM_NODES), (2 * num_rows, NUM_NODES))
    later = apply(
        jnp.concatenate([rest, nodes]),
        length[:, None] + jnp.concatenate([every[:num_rows], depths]),
        jnp.concatenate([chain, ancestor_mask(parents, NUM_NODES)]),
        cache_from_block(block, length, CAPACITY),
        length,
        anchors=every,
    )
    main = logits(later.hidden)
    return {
        "whole": logits(whole.hidden),
        "whole_streams": logits(whole.stream_hidden)[:, 0],
        "rest": main[:num_rows],
        "nodes": main[num_rows:],
        "node_streams": logits(later.stream_hidden[num_rows:]),
    }


@pytest.fixture(scope="module")
def trees(case):
    """One tree a row; that of the second row does not use all nodes."""
    rng = np.random.default_rng(0)
    trees = [
        random_tree(rng, row[cut], case.tiny.vocab_size, NUM_NODES - 3 * (i == 1))
        for i, (row, cut) in enumerate(zip(case.rows, CUTS, strict=True))
    ]
    for tree in trees:
        assert len(tree.paths) >= 3 and max(tree.depths) >= DEEP
        assert case.config.window < DEEP or not case.config.window
    return trees


@pytest.fixture(scope="module")
def passes(case, trees):
    """`run_passes` of this case, as NumPy."""
    paths = [
        row[: cut + 1] + path
        for row, cut, tree in zip(case.rows, CUTS, trees, strict=True)
        for path in tree.paths
    ]
    sequences, lengths = oracles.pad(case.rows + paths, CAPACITY)
    cut_rows = [row[cut:][:NUM_NODES] for row, cut in zip(case.rows, CUTS, strict=True)]
    rest, _ = oracles.pad(cut_rows, NUM_NODES)
    arrays = tuple(
        np.array([getattr(tree, field) for tree in trees], np.int32)
        for field in ("tokens", "parents", "depths")
    )
    arguments = (sequences, lengths, rest, arrays)
    return jax.tree.map(np.asarray, run_passes(case.model, case.params, *arguments))


def assert_close(got, wanted):
    np.testing.assert_allclose(got, wanted, atol=LOGIT_TOLERANCE, rtol=0)


def test_logits_equal_transformers(case, passes):
    """A padded batch of rows of different lengths against each row alone."""
    for row, expected in enumerate(case.logits):
        assert expected.std() > 2 and np.abs(expected).max() < 30
        assert_close(passes["whole"][row, : len(expected)], expected)


def test_cached_equals_transformers(case, passes):
    """The rest of each row, after a cache of its own length."""
    for row, (cut, expected) in enumerate(zip(CUTS, case.logits, strict=True)):
        held = min(NUM_NODES, len(expected) - cut)
        assert held >= 6
        assert_close(passes["rest"][row, :held], expected[cut : cut + held])


def test_tree_equals_its_paths(trees, passes):
    """Every node after the cache against a whole pass over its path; streams at the leaves."""
    first = len(CUTS)
    for row, (cut, tree) in enumerate(zip(CUTS, trees, strict=True)):
        leaves = 0
        for node, (path, depth) in enumerate(tree.places):
            alone = passes["whole"][first + path, cut + depth]
            assert_close(passes["nodes"][row, node], alone)
            if depth == len(tree.paths[path]):
                assert_close(
                    passes["node_streams"][row, node], passes["whole_streams"][first + path]
                )
                leaves += 1
        assert leaves == len(tree.paths)
        first += leaves
    assert first == len(passes["whole"])


@pytest.mark.parametrize("name", ["opt", "gpt2", "phi3_long"])
def test_longest_sequence(name, tmp_path, transformers):
    """A row that ends where the table of positions does, or where other factors begin."""
    case = family_cases.live_case(tiny_models.find(name), tmp_path)
    (row,) = tiny_models.random_ids(case.tiny, 0, (case.config.longest_sequence,))
    hidden = oracles.run_model(case.model, case.params, [row]).hidden
    expected = torch_models.run(case.torch_model, row)
    assert_close(oracles.logits_of(case.model, case.params, hidden)[0], expected)

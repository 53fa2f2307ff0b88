"""The table that drafts are read off: conditional probabilities, and the trees over them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.decoding.candidates import NUM_RANKED_ANEW, Candidates, find_candidates, independent
from ssjax.decoding.chances import log_chances, rows_needed
from ssjax.decoding.drafters import BestFirstDrafter, Context, StaticDrafter
from ssjax.decoding.tree import StaticTree, best_first_tree, static_tree
from ssjax.models.head import make_head, with_draft_head
from ssjax.models.parent import candidate_logits, make_correction, with_parents

J, V, ROWS = 3, 13, 4
ROOTS = np.array([3, 0, 12, 7], np.int32)


@pytest.fixture(scope="module")
def places():
    """(model, params, hidden [ROWS, J, D]) at the end of random sequences."""
    model = oracles.make_model(parent_rank=5)
    params = oracles.random_params(model, seed=1)
    tokens = np.random.default_rng(0).integers(0, V, (ROWS, 6))
    output = oracles.run_model(model, params, tokens, anchors=np.full((ROWS, 1), 5), num_streams=J)
    return model, params, output.stream_hidden[:, 0]


def conditional(places, stream, parents):
    """Log-probabilities [ROWS, V] of a stream after a parent in each row: the whole vocabulary."""
    model, params, hidden = places
    given = jnp.broadcast_to(jnp.asarray(parents)[:, None], hidden.shape[:2])
    corrected = with_parents(make_correction(params), hidden, given)
    return oracles.log_softmax(oracles.logits_of(model, params, corrected)[:, stream])


def test_with_the_whole_vocabulary_scores_are_the_conditional_probabilities(places):
    model, params, hidden = places
    found = find_candidates(model, params, hidden, jnp.asarray(ROOTS), V)
    assert found.tokens.shape == (ROWS, J, V) and found.scores.shape == (ROWS, J, V, V)
    for stream, p in itertools.product(range(J), range(V)):
        parents = ROOTS if stream == 0 else np.asarray(found.tokens[:, stream - 1, p])
        expected = np.take_along_axis(
            conditional(places, stream, parents), np.asarray(found.tokens[:, stream]), axis=1
        )
        # Float32 cannot tell what is outside of all candidates from one in a million.
        np.testing.assert_allclose(found.scores[:, stream, p], expected, atol=1e-4, rtol=1e-4)


def test_fewer_candidates_leave_their_share_to_the_others(monkeypatch, places):
    """Where W < V the mass outside is that of the stream alone."""
    monkeypatch.setattr("ssjax.decoding.candidates.NUM_RANKED_ANEW", 4)
    model, params, hidden = places
    found = find_candidates(model, params, hidden, jnp.asarray(ROOTS), 2)
    alone = oracles.log_softmax(oracles.logits_of(model, params, hidden))
    np.testing.assert_array_equal(found.tokens, np.argsort(-alone, axis=-1)[:, :, :4])
    scores = np.asarray(found.scores, np.float64)
    assert (scores <= 0).all() and (np.exp(scores).sum(axis=-1) < 1).all()
    first = jnp.broadcast_to(ROOTS[:, None, None], (ROWS, 1, 4))
    parents = jnp.concatenate([first, found.tokens[:, :-1]], axis=1)
    head = make_head(params, model.config)
    raw = candidate_logits(make_correction(params), head, hidden, parents, found.tokens)
    logits = oracles.logits_of(model, params, hidden).astype(np.float64)
    inside = np.take_along_axis(logits, np.asarray(found.tokens), axis=-1)
    outside = np.exp(logits).sum(axis=-1) - np.exp(inside).sum(axis=-1)
    whole = np.exp(np.asarray(raw, np.float64)).sum(axis=-1) + outside[:, :, None]
    np.testing.assert_allclose(scores, raw - np.log(whole)[..., None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parent_rank", [0, 5])
def test_a_draft_vocabulary_is_all_that_can_be_drafted(places, parent_rank):
    """Tokens and scores are those of logits whose other entries are minus infinity."""
    model, params, hidden = places
    few = (0, 2, 3, 7, 9, 12)
    streams = dataclasses.replace(
        model.streams, parent_rank=parent_rank, draft_vocab_size=len(few), draft_tokens=few
    )
    model = model.clone(streams=streams)
    hidden = hidden.astype(jnp.float32)
    others = np.setdiff1d(np.arange(V), few)
    for prepared in (params, with_draft_head(params, model.config, streams)):
        found = find_candidates(model, prepared, hidden, jnp.asarray(ROOTS), V)
        assert found.tokens.shape == (ROWS, J, len(few))
        alone = np.array(oracles.logits_of(model, params, hidden))
        alone[..., others] = -np.inf
        np.testing.assert_array_equal(found.tokens, np.argsort(-alone)[..., : len(few)])
        for stream, p in itertools.product(range(J), range(found.scores.shape[2])):
            after = alone[:, stream]
            if parent_rank:
                parents = ROOTS if stream == 0 else found.tokens[:, stream - 1, p]
                after = conditional(places, stream, parents)
                after[:, others] = -np.inf
            expected = np.take_along_axis(
                oracles.log_softmax(after), np.asarray(found.tokens[:, stream]), axis=1
            )
            np.testing.assert_allclose(found.scores[:, stream, p], expected, atol=1e-4, rtol=1e-4)


def test_a_model_without_the_correction_says_the_same_after_every_parent():
    model = oracles.make_model()
    params = oracles.random_params(model, seed=1)
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((2, J, 24)), jnp.float32)
    found = find_candidates(model, params, hidden, jnp.zeros(2, jnp.int32), 5)
    alone = oracles.log_softmax(oracles.logits_of(model, params, hidden))
    assert found.scores.shape == (2, J, 1, 5) and NUM_RANKED_ANEW > 5
    np.testing.assert_array_equal(found.tokens, np.argsort(-alone, axis=-1)[:, :, :5])
    np.testing.assert_allclose(found.scores[:, :, 0], -np.sort(-alone)[:, :, :5], atol=1e-5)


# Trees.


def random_table(seed, rows=ROWS, width=4):
    """Candidates whose scores are those of random conditional distributions, some mass outside."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.standard_normal((rows, J, width, width + 1))
    scores[:, 0] = scores[:, 0, :1]  # after the root
    scores = oracles.log_softmax(scores)[..., :width]
    tokens = np.stack([[rng.permutation(V)[:width] for _ in range(J)] for _ in range(rows)])
    return Candidates(jnp.asarray(tokens, jnp.int32), jnp.asarray(scores, jnp.float32))


def all_paths(table, row):
    """Every path of candidate places, and its joint log-probability."""
    scores, width = np.asarray(table.scores[row], np.float64), table.tokens.shape[-1]
    for depth in range(1, J + 1):
        for path in itertools.product(range(width), repeat=depth):
            above = (0, *path)
            yield path, sum(scores[d, above[d], place] for d, place in enumerate(path))


def tokens_on(table, row, path):
    return tuple(int(table.tokens[row, d, place]) for d, place in enumerate(path))


def paths_of(tree, row):
    """Tokens on the path of each used draft node, in the order of the nodes."""
    found = {0: ()}
    for node in range(1, tree.tokens.shape[1]):
        above = int(tree.parent[row, node])
        if above >= 0:
            found[node] = (*found[above], int(tree.tokens[row, node]))
            assert int(tree.depth[row, node]) == len(found[node])
    return [found[node] for node in sorted(found) if node]


@pytest.mark.parametrize("budget", [1, 3, 8, 30])
def test_best_first_equals_brute_force_over_the_conditional_probabilities(budget):
    table = random_table(budget)
    tree = jax.jit(best_first_tree, static_argnums=2)(ROOTS, table, budget)
    kinds = set()
    for row in range(ROWS):
        ranked = sorted(all_paths(table, row), key=lambda entry: -entry[1])[:budget]
        expected = [tokens_on(table, row, path) for path, _ in ranked]
        assert paths_of(tree, row) == expected
        kinds.add(tuple(map(len, expected)))
    assert len(kinds) > 1 or budget == 1  # trees of other shapes in other rows


TEMPERATURES = (0.7, 1.0, 1.8)


def test_tempered_chances_are_powers_in_proportion():
    """The tokens outside of the candidates are one event more."""
    table = random_table(5)
    chances = np.exp(np.asarray(table.scores, np.float64))
    whole = np.concatenate([chances, 1 - chances.sum(axis=-1, keepdims=True)], axis=-1)
    powers = whole ** (1 / np.array(TEMPERATURES))[:, None, None]
    expected = powers / powers.sum(axis=-1, keepdims=True)
    found = table.tempered((*TEMPERATURES, 9.0))  # of a stream that is not there
    np.testing.assert_allclose(np.exp(found.scores), expected[..., :-1], atol=1e-5)
    np.testing.assert_array_equal(found.tokens, table.tokens)
    impossible = Candidates(table.tokens, jnp.full_like(table.scores, -jnp.inf))
    assert (impossible.tempered(TEMPERATURES).scores == -jnp.inf).all()


def context_of(table):
    return Context(None, None, jnp.asarray(ROOTS), table, None, ())


@pytest.mark.parametrize("least", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("alike", [False, True])
def test_nodes_below_a_chance_are_not_drafted(least, alike):
    """Best-first, at temperatures, against every path; where parents are alike, too."""
    table = random_table(7)
    if alike:
        table = Candidates(table.tokens, table.scores[:, :, :1])
    drafter = BestFirstDrafter(8, J, temperatures=TEMPERATURES, min_node_chance=least)
    tree, _ = jax.jit(drafter.propose)(context_of(table))
    wide = jnp.broadcast_to(table.scores, (*table.scores.shape[:2], 4, 4))
    tempered = Candidates(table.tokens, wide).tempered(TEMPERATURES)
    counts = set()
    for row in range(ROWS):
        ranked = sorted(all_paths(tempered, row), key=lambda entry: -entry[1])[:8]
        expected = [tokens_on(table, row, p) for p, score in ranked if np.exp(score) >= least]
        assert paths_of(tree, row) == expected
        assert int(rows_needed(tree)[row]) == 1 + len(expected)
        counts.add(len(expected))
    assert max(counts) < 8 or least < 0.1
    assert len(counts) > 1 or least == 0.02


def test_a_static_tree_loses_what_is_unlikely_with_all_below():
    shape = StaticTree((-1, 0, 0, 1, 3, 2, 2, 5), (0, 2, 0, 1, 0, 3, 0, 1))
    table, least = random_table(9), 0.05
    whole = static_tree(shape, jnp.asarray(ROOTS), table)
    drafter = StaticDrafter(shape, J, min_node_chance=least)
    tree, _ = drafter.propose(context_of(table))
    chances = np.asarray(log_chances(whole, table))
    lost = 0
    for row in range(ROWS):
        by_tokens = {tokens_on(table, row, p): score for p, score in all_paths(table, row)}
        paths = paths_of(whole, row)
        np.testing.assert_allclose(chances[row, 1:], [by_tokens[p] for p in paths], atol=1e-5)
        kept = [path for path in paths if np.exp(by_tokens[path]) >= least]
        assert paths_of(tree, row) == kept
        lost += len(paths) - len(kept)
    assert 0 < lost < ROWS * 7


def test_a_drafter_of_few_nodes_still_knows_what_is_outside():
    assert BestFirstDrafter(3, J).num_candidates == 3
    assert BestFirstDrafter(3, J, temperatures=TEMPERATURES).num_candidates == NUM_RANKED_ANEW
    assert BestFirstDrafter(30, J, min_node_chance=0.1).num_candidates == 30


def test_widths_of_passes():
    """One, unless nodes may be missing and nothing is pruned within the pass."""
    found = {n: BestFirstDrafter(n, J, min_node_chance=0.1).widths for n in (1, 4, 8, 16)}
    assert found == {1: (1, 2), 4: (1, 5), 8: (1, 4, 9), 16: (1, 4, 8, 17)}
    assert BestFirstDrafter(8, J).widths == (9,)
    assert BestFirstDrafter(8, J, kept_nodes=3, min_node_chance=0.1).widths == (9,)


def test_a_static_tree_holds_the_best_after_each_parent():
    shape = StaticTree((-1, 0, 0, 1, 3, 2, 2, 5), (0, 2, 0, 1, 0, 3, 0, 1))
    table = random_table(9)
    tree = static_tree(shape, jnp.asarray(ROOTS), table)
    for row in range(ROWS):
        place = {0: 0}
        for node in range(1, shape.num_nodes):
            depth = shape.depths[node] - 1
            after = np.asarray(table.scores[row, depth, place[shape.parents[node]]])
            place[node] = int(np.argsort(-after, kind="stable")[shape.ranks[node]])
            assert int(tree.tokens[row, node]) == int(table.tokens[row, depth, place[node]])
        assert tree.parent[row].tolist() == list(shape.parents)
    assert (tree.tokens[:, 0] == ROOTS).all()


def test_scores_that_are_not_numbers_are_impossible():
    model = oracles.make_model(parent_rank=5)
    params = oracles.random_params(model, seed=1)
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((2, J, 24)), jnp.float32)
    hidden = hidden.at[1, 1].set(jnp.nan)
    found = find_candidates(model, params, hidden, jnp.zeros(2, jnp.int32), 4)
    assert np.isfinite(found.scores[0]).all() and (found.scores[1, 1] == -jnp.inf).all()
    tree = best_first_tree(jnp.zeros(2, jnp.int32), found, 6)
    assert all(len(path) == 1 for path in paths_of(tree, 1)[:4])


def test_streams_can_be_cut():
    table = independent(jnp.log(jnp.full((2, J, V), 1 / V)), 4)
    assert table.of_streams(2).tokens.shape == (2, 2, 4)
    assert table.of_streams(2).scores.shape == (2, 2, 1, 4)

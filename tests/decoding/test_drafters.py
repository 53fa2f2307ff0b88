"""Prompt lookup, merged trees and the draft model against brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import generate

from ssjax.config import DecodeConfig, StreamsConfig
from ssjax.decoding.candidates import independent
from ssjax.decoding.draft_model import ModelDrafter
from ssjax.decoding.drafters import (
    BestFirstDrafter,
    MergedDrafter,
    PlainDrafter,
    PromptLookup,
    StaticDrafter,
    make_drafter,
)
from ssjax.decoding.lookup import lookup_chain, merge_chain
from ssjax.decoding.tree import StaticTree, best_first_tree
from ssjax.errors import UserError
from ssjax.models.parameters import unstack_layers

NEW = 14


def search(tokens, num_drafted, longest_match):
    """What `lookup_chain` promises, by trying every earlier place."""
    best = None
    for end in range(1, len(tokens)):
        matched = 0
        while (
            matched < min(longest_match, end) and tokens[end - 1 - matched] == tokens[-1 - matched]
        ):
            matched += 1
        if matched:
            complete = end + num_drafted <= len(tokens)
            best = max(best or (0,), (matched, complete, end))
    return [] if best is None else tokens[best[2] :][:num_drafted]


@pytest.mark.parametrize("num_drafted, longest_match", [(1, 1), (4, 2), (5, 3)])
def test_lookup_equals_a_search(num_drafted, longest_match):
    rng = np.random.default_rng(num_drafted)
    lengths = np.array([1, 2, 3, 9, 17, 20, 20, 20])
    hits = 0
    for vocab_size in (1, 2, 4, 9):
        tokens = rng.integers(0, vocab_size, (8, 20)).astype(np.int32)
        chain, count = lookup_chain(
            jnp.asarray(tokens), jnp.asarray(lengths), num_drafted, longest_match
        )
        for row, length in enumerate(lengths):
            expected = search(tokens[row, :length].tolist(), num_drafted, longest_match)
            assert chain[row, : count[row]].tolist() == expected
            hits += len(expected) > 0
    assert 8 < hits < 32


def paths_of(tree, row):
    """Token paths of the used nodes."""
    tokens, parent = np.asarray(tree.tokens[row]), np.asarray(tree.parent[row])
    found = {0: ()}
    for node in range(1, len(tokens)):
        if parent[node] >= 0:
            assert parent[node] < node
            found[node] = (*found[int(parent[node])], int(tokens[node]))
            assert tree.depth[row, node] == len(found[node])
        else:
            assert tree.depth[row, node] == 0
    return [found[node] for node in sorted(found) if node]


def test_merged_tree_is_the_union_of_paths():
    rng = np.random.default_rng(0)
    log_probs = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(64, 3, 4)), jnp.float32))
    tree = best_first_tree(jnp.zeros(64, jnp.int32), independent(log_probs, 4), 7)
    chain = rng.integers(0, 4, (64, 5)).astype(np.int32)
    count = rng.integers(0, 6, 64)
    merged = merge_chain(tree, jnp.asarray(chain), jnp.asarray(count))
    assert merged.tokens.shape == (64, 8 + 5)
    shared = 0
    for row in range(64):
        before, after = paths_of(tree, row), paths_of(merged, row)
        chained = {tuple(chain[row, :n].tolist()) for n in range(1, count[row] + 1)}
        assert len(set(after)) == len(after)  # nothing twice
        assert set(after) == set(before) | chained
        shared += len(chained & set(before))
    assert shared > 20


PROMPTS = [[*p, *p, *p] for p in oracles.ragged_prompts(8, 20, longest=2)]  # something to find


# The draft model.


def with_draft_model(tiny, draft_params, num_draft_nodes, scan=False):
    """A decoder of the tiny model, a drafter with a draft model of its kind, and its weights."""
    model, params = tiny
    draft = oracles.make_model(num_streams=0).clone(scan=scan)
    draft_params = {k: v for k, v in draft_params.items() if k != "stream_embedding"}
    decoder = oracles.make_decoder(model, params)
    draft_params = draft_params if scan else unstack_layers(draft_params)
    return decoder, ModelDrafter(draft, num_draft_nodes), draft_params


@pytest.mark.parametrize("scan", [False, True])
def test_a_draft_model_equal_to_the_target_is_always_right(tiny, scan):
    """So its cache holds what it should: every draft is the target's own greedy continuation."""
    decoder, drafter, draft = with_draft_model(tiny, tiny[1], 4, scan)
    for completion in generate(decoder, PROMPTS, drafter, drafter_params=draft, max_new_tokens=NEW):
        assert completion.runs == (1, 5, 5, 3)


def test_draft_model_alone_gives_the_same_drafts(tiny):
    """Every pass's draft against NumPy greedy decoding by the draft model from that text."""
    other = oracles.random_params(oracles.make_model(num_streams=0), seed=9)
    decoder, drafter, draft = with_draft_model(tiny, other, 3)
    trees = []

    @dataclasses.dataclass(frozen=True, eq=False)
    class Watched(ModelDrafter):
        def propose(self, context):
            tree, memory = ModelDrafter.propose(self, context)
            jax.debug.callback(
                lambda *x: trees.append([np.asarray(v) for v in x]),
                context.tokens,
                context.length,
                tree.tokens,
                ordered=True,
            )
            return tree, memory

    watched = Watched(drafter.model, drafter.num_draft_nodes)
    generate(decoder, PROMPTS[:4], watched, drafter_params=draft, max_new_tokens=8)
    jax.effects_barrier()
    checked = 0
    for tokens, length, drafted in trees:
        for row in np.flatnonzero(length < [len(prompt) + 8 for prompt in PROMPTS[:4]]):
            checked += 1
            text = tokens[row, : length[row]].tolist()
            expected = oracles.greedy(other, drafter.model.config, text, 3, (-1,))
            assert tuple(drafted[row, 1:].tolist()) == tuple(expected)
    assert checked > 16


# The config.


def test_make_drafter():
    def made(streams=3, **changes):
        return make_drafter(dataclasses.replace(DecodeConfig(), **changes), StreamsConfig(streams))

    assert made() == BestFirstDrafter(8, 3)
    assert made(streams=0) == made(drafter="plain") == PlainDrafter()
    assert made(streams=0, drafter="prompt_lookup", num_nodes=5) == PromptLookup(5, 3)
    assert made(lookup_nodes=4, lookup_match=2) == MergedDrafter(
        BestFirstDrafter(8, 3), PromptLookup(4, 2)
    )
    assert made(kept_nodes=3) == BestFirstDrafter(8, 3, kept_nodes=3)
    explicit = {"tree": "explicit", "parents": (-1, 0, 1), "ranks": (0, 0, 1)}
    assert made(**explicit) == StaticDrafter(StaticTree((-1, 0, 1), (0, 0, 1)), 3)


@pytest.mark.parametrize(
    "changes, streams, message",
    [
        ({"drafter": "streams"}, 0, "was not trained with it"),
        ({"drafter": "draft_model", "draft_model": "runs/small"}, 3, "not part of the model"),
        ({"tree": "static", "branching": (1, 1)}, 1, "2 deep but the model looks 1 tokens"),
        ({"tree": "explicit", "parents": (-1, 0, 1), "ranks": (0, 0, 0)}, 1, "decode.parents"),
        ({"tree": "explicit", "parents": (-1, 2, 1), "ranks": (0, 0, 0)}, 3, "parents come first"),
        ({"tree": "explicit", "parents": (-1, 0), "ranks": (0,)}, 3, "one parent and one rank"),
    ],
)
def test_make_drafter_refuses(changes, streams, message):
    with pytest.raises(UserError, match=message):
        make_drafter(dataclasses.replace(DecodeConfig(), **changes), StreamsConfig(streams))

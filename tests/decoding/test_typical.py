"""Typical acceptance: the rule by hand and against a walk over all paths; off by default."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import generate, tokens_of

from ssjax.config import DecodeConfig
from ssjax.decoding.acceptance import accept_typical
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.tree import NO_TOKEN, DraftTree, ancestor_mask
from ssjax.errors import UserError
from ssjax.evaluation import certificates

MAX_DEPTH, VOCAB, BATCH, NODES = 3, 6, 2000, 9


def typical(tree, probability, drawn, max_depth=MAX_DEPTH):
    """Arrays of the product: path, num_accepted, drawn."""
    tree = DraftTree(*(jnp.asarray(x, jnp.int32) for x in tree))
    rule = jax.jit(functools.partial(accept_typical, max_depth=max_depth))
    target = jnp.log(jnp.maximum(jnp.asarray(probability, jnp.float32), 1e-30))
    mask = ancestor_mask(tree.parent, max_depth)
    acceptance, drawn = rule(tree, mask, target, jnp.asarray(drawn, jnp.int32))
    return np.asarray(acceptance.path), np.asarray(acceptance.num_accepted), np.asarray(drawn)


@pytest.mark.parametrize(
    ("probability", "accepted"),
    [
        # Entropy 1.14: 0.3 exp(-1.14) = 0.096, so the threshold is 0.09.
        ((0.5, 0.3, 0.15, 0.05), (True, True, True, False)),
        ((0.52, 0.3, 0.091, 0.089), (True, True, True, False)),
        # Uniform over 4: entropy log 4, threshold 0.3 / 4 = 0.075.
        ((0.25, 0.25, 0.25, 0.25), (True, True, True, True)),
        # Uniform over 20 tokens: threshold 0.3 / 20 = 0.015, each token has 0.05.
        ((0.05,) * 20, (True,) * 4),
        # Entropy log 10 of the first ten: threshold 0.03.
        ((0.1,) * 10 + (0.0,) * 10, (True,) * 4),
        # A peak and a flat rest: entropy 1.51, threshold 0.066; each of the rest has 0.015.
        ((0.7,) + (0.015,) * 20, (True, False, False, False)),
        # A flatter one: entropy 2.47, threshold 0.025; each of the rest has 0.03.
        ((0.4,) + (0.03,) * 20, (True, True, True, True)),
        ((1.0, 0.0, 0.0, 0.0), (True, False, False, False)),
    ],
)
def test_rule_by_hand(probability, accepted):
    """One draft node after the root, of each of the first four tokens."""
    for token, expected in enumerate(accepted):
        tree = ([[9, token]], [[-1, 0]], [[0, 1]])
        found = typical(tree, [[probability, probability]], [[3, 2]], max_depth=1)
        assert found[1].tolist() == [int(expected)]
        # An accepted token stands where one was drawn; the bonus token is as drawn.
        assert found[2].tolist() == [[token if expected else 3, 2]]
        assert found[0].tolist() == [[0, int(expected)]]


def test_longest_then_likeliest_path_wins():
    """Depth 2 at 0.2 * 0.2 beats depth 1 at 0.6; of two at depth 2 the likelier wins."""
    p_root = (0.6, 0.2, 0.2, 0, 0, 0)
    p_other = (0.2, 0.3, 0.5, 0, 0, 0)
    tree = ([[5, 0, 1, 0, 2, 4]], [[-1, 0, 0, 2, 2, 1]], [[0, 1, 1, 2, 2, 2]])
    path, num_accepted, drawn = typical(tree, [[p_root] + [p_other] * 5], [[0, 1, 1, 1, 1, 1]])
    assert (path.tolist(), num_accepted.tolist()) == ([[0, 2, 4, 4]], [2])
    assert drawn.tolist() == [[1, 1, 2, 1, 1, 1]]


def test_random_trees_equal_a_walk_over_all_paths():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (BATCH, NODES))
    parent, depth = np.full((BATCH, NODES), -1), np.zeros((BATCH, NODES), int)
    for row in range(BATCH):
        for node in range(1, NODES):
            above = rng.integers(0, node)
            used = above == 0 or parent[row, above] >= 0
            if used and depth[row, above] < MAX_DEPTH and rng.random() < 0.85:
                parent[row, node], depth[row, node] = above, depth[row, above] + 1
            else:
                tokens[row, node] = 0  # unused, as drafters write it
    probability = rng.dirichlet(np.full(VOCAB, 0.5), (BATCH, NODES))
    drawn = rng.integers(0, VOCAB, (BATCH, NODES))
    drawn[rng.random(drawn.shape) < 0.1] = NO_TOKEN  # logits are not finite: nothing is after it
    path, num_accepted, follows = typical((tokens, parent, depth), probability, drawn)
    lengths = set()
    for row in range(BATCH):
        best, best_score = (0,), (0, 0.0)
        paths = {0: ((0,), 0.0)}
        for node in range(1, NODES):
            if parent[row, node] not in paths or drawn[row, parent[row, node]] == NO_TOKEN:
                continue
            above, score = paths[parent[row, node]]
            p = probability[row, parent[row, node]]
            entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
            if p[tokens[row, node]] > min(0.09, 0.3 * np.exp(-entropy)):
                score += np.log(p[tokens[row, node]])
                paths[node] = (*above, node), score
                if (len(above), score) > best_score or len(above) > best_score[0]:
                    best, best_score = paths[node][0], (len(above), score)
        lengths.add(len(best))
        assert num_accepted[row] == len(best) - 1
        assert path[row].tolist() == [*best, *[best[-1]] * (MAX_DEPTH + 1 - len(best))]
        expected = drawn[row].copy()
        for above, node in zip(best[:-1], best[1:], strict=True):
            expected[above] = tokens[row, node]
        assert follows[row].tolist() == expected.tolist()
    assert lengths == {1, 2, 3, 4}


@pytest.fixture(scope="module")
def prompts():
    return oracles.ragged_prompts(19, 24)


def test_decoded_tokens_obey_the_rule(tiny, prompts):
    """Replayed: drafts that were kept are likely enough, all other tokens are as drawn."""
    model, params = tiny
    decoder = oracles.make_decoder(model, params, eos_ids=(2,))
    sampling = Sampling(temperature=2.0, banned_tokens=(5,))
    asked = {"sampling": sampling, "seed": 3, "accept": "typical", "log_probs": True}
    completions = generate(decoder, prompts, BestFirstDrafter(12, 3), **asked)
    num_kept = num_lossy = 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        output, last = completion.tokens, len(completion.tokens) - 1
        assert 2 not in output[:-1] and (completion.finish == "eos") == (output[-1] == 2)
        logits = oracles.forward(params, model.config, [*prompt, *output])[0][len(prompt) - 1 :]
        log_probs = oracles.log_softmax(logits)[np.arange(len(output)), list(output)]
        np.testing.assert_allclose(completion.log_probs, log_probs, atol=oracles.LOGIT_TOLERANCE)
        bonus = set(np.cumsum(completion.runs) - 1)
        key = jax.random.fold_in(jax.random.key(3), row)
        for place, token in enumerate(output):
            scores = logits[place] / 2.0
            scores[5] = -np.inf
            noise = jax.random.gumbel(jax.random.fold_in(key, len(prompt) + place), (13,))
            drawn = int((scores + np.asarray(noise)).argmax())
            if place not in bonus:
                p = np.exp(oracles.log_softmax(scores))
                entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
                assert p[token] > min(0.09, 0.3 * np.exp(-entropy)) - 1e-5
                num_kept, num_lossy = num_kept + 1, num_lossy + (token != drawn)
            elif place < last:  # the last pass may have been cut before its bonus token
                assert token == drawn
    assert num_kept > num_lossy > 5


def test_off_by_default_and_of_no_effect_without_drafts(tiny, prompts):
    decoder = oracles.make_decoder(*tiny)
    sampling = Sampling(temperature=2.0)

    def run(drafter, **options):
        return generate(decoder, prompts, drafter, sampling=sampling, **options)

    drafter = BestFirstDrafter(12, 3)
    plain, exact = run(PlainDrafter()), run(drafter)
    assert tokens_of(exact) == tokens_of(run(drafter, accept="exact")) == tokens_of(plain)
    lossy = run(drafter, accept="typical")
    assert tokens_of(lossy) != tokens_of(plain)
    assert tokens_of(run(PlainDrafter(), accept="typical")) == tokens_of(plain)
    assert DecodeConfig().accept == "exact"


def test_greedy_and_unknown_rules_are_refused(tiny, prompts):
    decoder = oracles.make_decoder(*tiny)
    with pytest.raises(UserError, match="typical acceptance needs a temperature"):
        generate(decoder, prompts[:1], PlainDrafter(), sampling=Sampling(), accept="typical")
    with pytest.raises(ValueError, match="accept 'all' must be one of exact, typical"):
        generate(decoder, prompts[:1], PlainDrafter(), sampling=Sampling(1.0), accept="all")
    assert generate(decoder, prompts[:1], PlainDrafter())[0].tokens


def test_a_lossy_rule_is_not_certified():
    decode = DecodeConfig(accept="typical", temperature=1.0)
    with pytest.raises(UserError, match="'typical' is lossy"):
        certificates.certify(None, [], decode)

"""Sampling: the warped distribution against NumPy, and speculative samples against exact sums."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

from ssjax.config import StreamsConfig
from ssjax.decoding.draft_model import ModelDrafter
from ssjax.decoding.drafters import (
    BestFirstDrafter,
    MergedDrafter,
    PlainDrafter,
    PromptLookup,
    StaticDrafter,
)
from ssjax.decoding.sampling import Sampling, draw, first_argmax, position_noise, warp
from ssjax.decoding.tree import NO_TOKEN, StaticTree
from ssjax.models.attention import MASKED, Causal
from ssjax.models.parameters import unstack_layers
from ssjax.models.transformer import Transformer

TOLERANCE = 1e-5
P_VALUE = 1e-3
ROWS, VOCAB, NEW = 4096, 5, 4
PROMPT = (3, 1, 4, 0)
DRAFTER = BestFirstDrafter(8, 3)
SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.8, top_k=4, top_p=0.9),
]
NAMES = ["temperature", "top_k_top_p"]


def numpy_warp(logits, sampling):
    """Kept tokens and their probabilities for one vector of logits."""
    scaled = np.asarray(logits, np.float64) / sampling.temperature
    kept = np.ones(len(scaled), bool)
    if sampling.top_k:
        best = sorted(scaled, reverse=True)[: sampling.top_k]
        kept = scaled >= best[-1]
    probability = np.where(kept, np.exp(scaled - scaled.max()), 0)
    probability /= probability.sum()
    if sampling.top_p < 1:
        mass, lowest = 0.0, None
        for value in sorted(scaled[kept], reverse=True):
            if mass >= sampling.top_p:
                break
            lowest = value
            mass += np.exp(value - scaled.max()) / np.exp(scaled[kept] - scaled.max()).sum()
        kept &= scaled >= lowest
    kept &= np.exp(scaled - scaled.max()) >= sampling.min_p
    probability = np.where(kept, probability, 0)
    return probability / probability.sum()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 12, 40])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.4, 1e-6])
def test_warp_equals_numpy(temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p)
    logits = np.random.default_rng(0).normal(size=(6, 2, 12)).astype(np.float32) * 2
    warped = np.asarray(jax.nn.softmax(warp(jnp.asarray(logits), sampling)))
    for index in np.ndindex(6, 2):
        expected = numpy_warp(logits[index], sampling)
        np.testing.assert_allclose(warped[index], expected, atol=TOLERANCE)
        np.testing.assert_array_equal(warped[index] > 0, expected > 0)
        assert (expected > 0).sum() <= (top_k or 12)


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 200.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(300, 1.0), (300, 0.6), (0, 0.9), (9, 0.9), (0, 0.4)])
def test_warp_of_a_vocabulary_that_is_not_ranked_whole(sharpness, top_k, top_p):
    """Rows whose best 256 tokens have the mass, beside rows where they do not: equal to NumPy, and
    each as it is alone. Some of the logits are equal."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 3, 1500)).astype(np.float32)
    logits = np.round(logits, 2) * np.float32([0.0, sharpness, 3.0])[:, None]
    sampling = Sampling(1.0, top_k, top_p)
    kept = np.asarray(jax.jit(warp, static_argnums=1)(jnp.asarray(logits), sampling)) > -1e29
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(kept[index], numpy_warp(logits[index], sampling) > 0)
        alone = np.asarray(warp(jnp.asarray(logits[index]), sampling)) > -1e29
        np.testing.assert_array_equal(kept[index], alone)


def test_warp_keeps_ties():
    logits = jnp.array([2.0, 1.0, 2.0, 1.0, 1.0, 0.0])
    kept = {
        (top_k, top_p): tuple(
            np.flatnonzero(np.asarray(warp(logits, Sampling(1.0, top_k, top_p))) > -1e29)
        )
        for top_k, top_p in [(1, 1.0), (2, 1.0), (3, 1.0), (0, 0.1), (0, 0.8), (3, 0.8)]
    }
    assert kept == {
        (1, 1.0): (0, 2),
        (2, 1.0): (0, 2),
        (3, 1.0): (0, 1, 2, 3, 4),
        (0, 0.1): (0, 2),
        (0, 0.8): (0, 1, 2, 3, 4),
        (3, 0.8): (0, 1, 2, 3, 4),
    }


def test_first_argmax_takes_the_lowest_index():
    x = np.random.default_rng(0).integers(0, 3, (200, 7)).astype(np.float32)
    got = np.asarray(first_argmax(jnp.asarray(x)))
    assert got.tolist() == [row.tolist().index(max(row)) for row in x]
    assert first_argmax(jnp.full((2, 4), -1e30)).tolist() == [0, 0]


def test_draw_is_noise_of_the_position_after_the_node():
    """Two nodes of one depth share the noise; the draw is a Gumbel argmax by hand."""
    keys = jax.random.split(jax.random.key(0), 3)
    noise = np.asarray(position_noise(keys, jnp.arange(3)[:, None] + jnp.arange(4), 6))
    for row, depth in itertools.product(range(3), range(4)):
        by_hand = jax.random.gumbel(jax.random.fold_in(keys[row], row + depth), (6,))
        np.testing.assert_array_equal(noise[row, depth], by_hand)
    depths = np.array([[0, 1, 1, 3]] * 3)
    logits = np.random.default_rng(1).normal(size=(3, 4, 6)).astype(np.float32)
    logits, depths, noise = (jnp.asarray(x) for x in (logits, depths, noise))
    got = draw(logits, logits, depths, noise, Sampling(0.5))
    for row, node in itertools.product(range(3), range(4)):
        scores = logits[row, node] / 0.5 + noise[row, depths[row, node]]
        assert int(got[row, node]) == int(np.argmax(scores))
    greedy = draw(logits, logits, depths, None, Sampling())
    np.testing.assert_array_equal(greedy, logits.argmax(axis=-1))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5)])
@pytest.mark.parametrize("size", [6, 1031])
def test_nothing_is_drawn_from_logits_that_are_not_finite(sampling, size):
    """Wherever the one stands, and whatever is left of it after penalties and bans."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(60, 4, size)).astype(np.float32)
    bad = rng.random((60, 4)) < 0.5
    for row, node in np.argwhere(bad):
        logits[row, node, rng.integers(size)] = rng.choice([np.nan, -np.nan, np.inf, -np.inf])
    banned = np.where(np.isfinite(logits), logits, MASKED)
    depths = jnp.zeros((60, 4), jnp.int32)
    noise = jnp.zeros((60, 1, size)) if sampling.temperature else None
    program = jax.jit(draw, static_argnums=4)
    for adjusted in (logits, banned):
        drawn = np.asarray(program(adjusted, logits, depths, noise, sampling))
        np.testing.assert_array_equal(drawn == NO_TOKEN, bad)
        np.testing.assert_array_equal(drawn[~bad], logits.argmax(axis=-1)[~bad])


@pytest.fixture(scope="module")
def small(kit):
    """A model of five tokens and its parameters with a larger table, for uneven odds."""
    streams = StreamsConfig(3, 2, exit_rank=2, medusa_heads=3, parent_rank=0, root_rank=0)
    model = Transformer(kit.make_model(vocab_size=VOCAB).config, streams, scan=True)
    params = kit.make_params(model)
    heads = jax.random.normal(jax.random.key(1), params["medusa_head"].shape)
    return model, {**params, "embedder": params["embedder"] * 5, "medusa_head": heads}


def small_draft_model(small):
    """The same model a little changed, without what drafts; a drafter and its parameters."""
    model, params = small
    names = ("embedder", "trunk", "stream_layers", "final_norm")
    noisy = jax.tree.map(
        lambda x: x + 0.1 * x.std() * jax.random.normal(jax.random.key(x.size), x.shape),
        unstack_layers({name: params[name] for name in names}),
    )
    return ModelDrafter(Transformer(model.config, StreamsConfig(0, 2), scan=False), 3), noisy


@pytest.fixture(scope="module")
def sample(small, kit):
    """sample(drafter, sampling, seed, rows) -> completions of rows equal prompts, cached."""
    decoder, done = kit.make_decoder(*small, eos_ids=kit.NEVER, buckets=(4,)), {}
    draft = small_draft_model(small)[1]

    def run(drafter, sampling, seed=0, rows=ROWS, batch=ROWS):
        key = (drafter, sampling, seed, rows, batch)
        if key not in done:
            asked = {"max_new_tokens": NEW, "sampling": sampling, "batch_size": batch, "seed": seed}
            done[key] = oracles.generate(
                decoder, [PROMPT] * rows, drafter, drafter_params=draft, **asked
            )
        return done[key]

    return run


@pytest.fixture(scope="module")
def logits_after(small):
    """Main logits after the prompt and every continuation of up to 3 tokens; teacher-forced."""
    model, params = small
    continuations = np.array(list(itertools.product(range(VOCAB), repeat=NEW - 1)))
    tokens = np.concatenate([np.tile(PROMPT, (len(continuations), 1)), continuations], axis=1)

    @jax.jit
    def forward(tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        output = model.apply({"params": params}, tokens, positions, Causal())
        return model.apply({"params": params}, output.hidden, method="logits")

    logits = np.asarray(forward(jnp.asarray(tokens, jnp.int32)))
    return {
        tuple(continuation[:kept].tolist()): row[len(PROMPT) - 1 + kept]
        for continuation, row in zip(continuations, logits, strict=True)
        for kept in range(NEW)
    }


def joint_of(logits_after, sampling):
    """Exact probability of every quadruple."""
    joint = {}
    for four in itertools.product(range(VOCAB), repeat=NEW):
        factors = [numpy_warp(logits_after[four[:i]], sampling)[four[i]] for i in range(NEW)]
        joint[four] = float(np.prod(factors))
    assert abs(sum(joint.values()) - 1) < TOLERANCE
    return joint


def chi_square(observed, expected):
    """P-value; cells that expect fewer than 5 are joined."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    assert not observed[~used].any() and used.sum() > 3
    return stats.chisquare(observed[used], expected[used]).pvalue


def assert_exact(completions, logits_after, sampling):
    """Counts of all quadruples fit their exact odds, and no odds that are a little off."""
    joint = joint_of(logits_after, sampling)
    counts = dict.fromkeys(joint, 0)
    for completion in completions:
        counts[completion.tokens] += 1
    assert not any(count for four, count in counts.items() if joint[four] == 0)
    expected = ROWS * np.array(list(joint.values()))
    assert chi_square(list(counts.values()), expected) > P_VALUE
    other = joint_of(logits_after, Sampling(sampling.temperature * 1.3, sampling.top_k))
    assert chi_square(list(counts.values()), ROWS * np.array(list(other.values()))) < P_VALUE


@pytest.mark.parametrize("sampling", SETTINGS, ids=NAMES)
def test_joint_of_four_tokens_is_exact(sampling, sample, logits_after):
    completions = sample(DRAFTER, sampling)
    # Drafts of depth 1 and 2 were accepted, and rejected.
    assert {(1, 3), (1, 2, 1), (1, 1, 1, 1)} <= {c.runs for c in completions}
    assert_exact(completions, logits_after, sampling)


STATIC = StaticTree.from_branching((2, 1))
OTHER_DRAFTERS = {
    "plain": PlainDrafter(),
    "pruned": BestFirstDrafter(8, 3, kept_nodes=3),
    "static": StaticDrafter(STATIC, 2),
    "one stream, so a bonus after every accepted draft": BestFirstDrafter(2, 1),
    "medusa": BestFirstDrafter(8, 0, num_heads=3),
    "lookup": PromptLookup(3, 2),
    "merged": MergedDrafter(StaticDrafter(STATIC, 2), PromptLookup(3, 2)),
    "draft model": None,  # made of the model
}


@pytest.mark.stress
@pytest.mark.parametrize("name", OTHER_DRAFTERS)
def test_joint_of_four_tokens_is_exact_with_every_drafter(name, sample, logits_after, small):
    drafter = OTHER_DRAFTERS[name] or small_draft_model(small)[0]
    completions = sample(drafter, SETTINGS[1])
    runs = {c.runs for c in completions}
    assert runs >= ({(1, 1, 1, 1)} if name == "plain" else {(1, 1, 1, 1), (1, 2, 1)})
    assert_exact(completions, logits_after, SETTINGS[1])


@pytest.mark.parametrize("sampling", SETTINGS, ids=NAMES)
def test_speculative_samples_equal_plain_ones_token_for_token(sampling, sample):
    plain, drafted = sample(PlainDrafter(), sampling), sample(DRAFTER, sampling)
    assert [c.tokens for c in drafted] == [c.tokens for c in plain]
    assert all(c.calls == NEW - 1 for c in plain)
    assert sum(c.calls for c in drafted) < sum(c.calls for c in plain)


def penalised(logits, before, sampling, eos):
    """Logits after the prompt and the tokens `before`, one token at a time."""
    logits = np.array(logits, np.float64)
    for token in {*PROMPT, *before}:
        logits[token] *= sampling.repetition_penalty ** (1 if logits[token] < 0 else -1)
        logits[token] -= sampling.presence_penalty * (token in before)
    logits[list(sampling.banned_tokens) + [eos] * (len(before) < sampling.min_new_tokens)] = -1e30
    return logits


def test_joint_with_penalties_bans_and_ends_is_exact(small, kit, logits_after):
    """Every output of up to three tokens, ends of sequence included, against its exact odds."""
    eos, banned = 2, 0
    sampling = Sampling(
        temperature=2.5,
        min_p=0.1,
        repetition_penalty=1.6,
        presence_penalty=0.9,
        banned_tokens=(banned,),
        min_new_tokens=1,
    )
    decoder = kit.make_decoder(*small, eos_ids=(eos,), buckets=(4,))
    completions = oracles.generate(
        decoder, [PROMPT] * ROWS, DRAFTER, max_new_tokens=3, sampling=sampling
    )
    assert {(1, 2), (1, 1, 1)} <= {c.runs for c in completions}

    def odds(sampling, before=()):
        """Probability of every output that begins with `before`."""
        if len(before) == 3 or before[-1:] == (eos,):
            return {before: 1.0}
        adjusted = penalised(logits_after[before], before, sampling, eos)
        step = numpy_warp(adjusted, sampling)
        return {
            output: step[token] * share
            for token in range(VOCAB)
            for output, share in odds(sampling, (*before, token)).items()
        }

    outputs = list(odds(sampling))
    found = [completion.tokens for completion in completions]
    counts = [found.count(output) for output in outputs]
    assert sum(counts) == ROWS

    def p_value(sampling):
        exact = odds(sampling)
        assert abs(sum(exact.values()) - 1) < TOLERANCE
        return chi_square(counts, ROWS * np.array([exact[output] for output in outputs]))

    assert {len(output) for output in found} == {2, 3}
    assert p_value(sampling) > P_VALUE
    # The same test refuses penalties that are a little off.
    for change in ({"repetition_penalty": 1.3}, {"presence_penalty": 0.4}):
        assert p_value(dataclasses.replace(sampling, **change)) < P_VALUE


def test_rows_are_independent(sample, logits_after):
    first = np.array([c.tokens[0] for c in sample(DRAFTER, SETTINGS[0])])
    single = numpy_warp(logits_after[()], SETTINGS[0])
    counts = np.zeros((VOCAB, VOCAB))
    np.add.at(counts, (first[0::2], first[1::2]), 1)
    expected = ROWS // 2 * np.outer(single, single)
    assert chi_square(counts.ravel(), expected.ravel()) > P_VALUE


def test_seed_decides(sample):
    batch = [c.tokens for c in sample(DRAFTER, SETTINGS[0], 0)]
    sample_again = [c.tokens for c in sample(DRAFTER, SETTINGS[0], 0, rows=ROWS - 1)]
    assert sample_again == batch[:-1]  # another call, one row fewer
    other = [c.tokens for c in sample(DRAFTER, SETTINGS[0], 1)]
    assert np.mean([a != b for a, b in zip(batch, other, strict=True)]) > 0.5


def test_batch_composition_does_not_change_samples(sample):
    whole = [c.tokens for c in sample(DRAFTER, SETTINGS[0])][:10]
    assert [c.tokens for c in sample(DRAFTER, SETTINGS[0], rows=10, batch=4)] == whole


def test_tiny_temperature_is_greedy(sample):
    cold = sample(DRAFTER, Sampling(temperature=1e-4), rows=64, batch=64)
    greedy = sample(DRAFTER, Sampling(), rows=64, batch=64)
    assert [c.tokens for c in cold] == [c.tokens for c in greedy]
    assert len({c.tokens for c in greedy}) == 1

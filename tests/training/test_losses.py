"""Losses against NumPy, and what they must not depend on."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import LOGIT_TOLERANCE

from ssjax.config import LossConfig, StreamsConfig
from ssjax.models.execution import Execution
from ssjax.models.head import Head
from ssjax.training.losses import (
    Scored,
    anchor_targets,
    chunked_cross_entropy,
    loss_sums,
    loss_weights,
    target_weight,
    weighted_loss,
)

J, EOS = 3, 12
SUM_TOLERANCE = 1e-5  # relative, of sums of about 20 terms

PROMPTS = [[5, 1, 2], [7], [3, 3, 0, 4], [1, 2]]
TARGETS = [[8, 9, EOS], [4, 0, 6, 1, EOS], [], [EOS]]


def head(table):
    return Head(table, None, divisor=1.0, softcap=0.0)


def make_batch(width=9):
    whole = [p + t for p, t in zip(PROMPTS, TARGETS, strict=True)]
    tokens, length = oracles.pad(whole, width)
    prompt_length = np.array([len(p) for p in PROMPTS], np.int32)
    return oracles.batch_of(tokens, prompt_length, length)


@pytest.fixture(scope="module")
def sums_of(tiny):
    """(batch, num_anchors, fields of LossConfig) -> LossSums of the tiny model."""
    model, params = tiny
    jitted = jax.jit(
        lambda batch, anchors, config: loss_sums(model, params, batch, anchors, config),
        static_argnums=(1, 2),
    )
    return lambda batch, num_anchors=5, **config: jitted(batch, num_anchors, LossConfig(**config))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=SUM_TOLERANCE)


def test_anchor_targets_by_hand():
    """Main at t predicts t + 1, stream j predicts t + 1 + j; prompt and padding never."""
    anchors, targets, weights = anchor_targets(make_batch(), 5, tuple(range(1 + J)))
    np.testing.assert_array_equal(anchors[:2], [[2, 3, 4, 4, 4], [0, 1, 2, 3, 4]])
    _ = None  # no target
    tables = [
        [[8, 9, EOS, _], [9, EOS, _, _], [EOS, _, _, _], [_] * 4, [_] * 4],
        [[4, 0, 6, 1], [0, 6, 1, EOS], [6, 1, EOS, _], [1, EOS, _, _], [EOS, _, _, _]],
        [[_] * 4] * 5,
        [[EOS, _, _, _]] + [[_] * 4] * 4,
    ]
    for b, table in enumerate(tables):
        for a, row in enumerate(table):
            for stream, token in enumerate(row):
                assert weights[b, a, stream] == (token is not None)
                if token is not None:
                    assert targets[b, a, stream] == token


def test_target_weight_counts_targets():
    np.testing.assert_array_equal(target_weight(make_batch(), tuple(range(1 + J))), [9, 6, 4, 2])


def test_sums_equal_numpy(tiny, sums_of):
    """A float64 forward pass per row; the loss spelled out target by target."""
    model, params = tiny
    cross_entropy, correct, weight = np.zeros((3, 1 + J))
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        whole = prompt + target
        main, streams = oracles.forward(params, model.config, whole, range(len(whole)), J)
        for index in range(len(prompt), len(whole)):  # of the predicted token
            for j in range(1 + J):
                t = index - 1 - j
                if t < len(prompt) - 1:
                    continue  # the prompt carries no streams
                scores = oracles.log_softmax(main[t] if j == 0 else streams[t, j - 1])
                cross_entropy[j] -= scores[whole[index]]
                correct[j] += scores.argmax() == whole[index]
                weight[j] += 1
    sums = sums_of(make_batch())
    np.testing.assert_allclose(sums.cross_entropy, cross_entropy, rtol=LOGIT_TOLERANCE)
    np.testing.assert_array_equal(sums.correct, correct)
    np.testing.assert_array_equal(sums.weight, weight)
    assert weight.min() > 0


@pytest.mark.parametrize("distillation", [0.0, 1.0])
def test_streams_with_a_draft_vocabulary_equal_numpy(tiny, distillation):
    """Softmax over some tokens; a target that is none of them teaches nothing and is missed.

    The main stream has all tokens, and as a teacher the same ones as the streams.
    """
    model, params = tiny
    few = (1, 8, EOS)
    drafted = {"draft_vocab_size": len(few), "draft_tokens": few}
    model = model.clone(streams=dataclasses.replace(model.streams, **drafted))
    cross_entropy, correct, objective = np.zeros((3, 1 + J))
    num_outside = 0
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        whole = prompt + target
        main, streams = oracles.forward(params, model.config, whole, range(len(whole)), J)
        for t, j in itertools.product(range(len(prompt) - 1, len(whole) - 1), range(1 + J)):
            if t + 1 + j >= len(whole):
                continue
            token, drafts = whole[t + 1 + j], j > 0
            scores = oracles.log_softmax(streams[t, j - 1][list(few)] if drafts else main[t])
            known = not drafts or token in few
            place = few.index(token) if drafts and known else token
            own = -scores[place] if known else 0.0
            num_outside += not known
            cross_entropy[j] += own
            correct[j] += known and scores.argmax() == place
            if drafts and distillation:
                taught = oracles.log_softmax(main[t + j][list(few)])
                own = (np.exp(taught) * (taught - scores)).sum()
            objective[j] += own
    config = LossConfig(distillation=distillation)
    sums = jax.jit(lambda batch: loss_sums(model, params, batch, 5, config))(make_batch())
    assert num_outside > 3
    np.testing.assert_allclose(sums.cross_entropy, cross_entropy, rtol=LOGIT_TOLERANCE)
    np.testing.assert_array_equal(sums.correct, correct)
    np.testing.assert_allclose(sums.objective, objective, rtol=LOGIT_TOLERANCE)
    np.testing.assert_array_equal(sums.weight, [9, 6, 4, 2])


def test_top_1_hits_are_counted():
    """Literal logits: hidden states pick rows of the identity."""
    hidden = jnp.eye(4)[jnp.array([[[0, 1], [2, 3]]])]  # [1, 2, 2, 4]
    targets = jnp.array([[[0, 2], [2, 3]]])
    weights = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
    scored = Scored(hidden, head(5 * jnp.eye(4)), targets, weights)
    sums = chunked_cross_entropy(scored, 8, Execution())
    right = np.log(np.exp(5) + 3) - 5
    np.testing.assert_array_equal(sums.correct, [2, 0])
    np.testing.assert_array_equal(sums.weight, [2, 1])
    np.testing.assert_allclose(sums.cross_entropy, [2 * right, 5 + right], rtol=SUM_TOLERANCE)


@pytest.mark.parametrize("chunk_size", [1, 12, 36])
def test_chunk_size_does_not_matter(sums_of, chunk_size):
    assert_same(sums_of(make_batch(), chunk_size=chunk_size), sums_of(make_batch()))


def test_amount_of_padding_does_not_matter(sums_of):
    wide = make_batch(width=14)
    assert_same(sums_of(wide), sums_of(make_batch()))
    assert_same(sums_of(wide, num_anchors=9), sums_of(make_batch()))


def test_content_of_padding_does_not_matter(sums_of):
    batch = make_batch()
    other = batch.replace(tokens=jnp.where(batch.segments == 0, 11, batch.tokens))
    for a, b in zip(*map(jax.tree.leaves, (sums_of(other), sums_of(batch))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_without_targets_weigh_nothing(sums_of):
    """A batch of them alone has sums of exactly 0, and a finite loss and gradient."""
    batch = make_batch()
    empty = batch.replace(is_target=jnp.zeros_like(batch.is_target))
    sums = sums_of(empty)
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(sums))
    assert float(weighted_loss(sums, jnp.ones(4), target_weight(empty, tuple(range(1 + J))))) == 0.0


def test_streams_are_scored_with_their_true_parents_too():
    """Stream j at t with the token t + j, by NumPy; the plain scores stand as they were."""
    model = oracles.make_model(parent_rank=5)
    params = oracles.random_params(model, seed=7)
    batch = make_batch()
    sums = loss_sums(model, params, batch, 5, LossConfig())
    own, told = np.zeros((2, J)), np.zeros((2, J))  # cross-entropy and hits, stream by stream
    correction = {k: np.asarray(v, np.float64) for k, v in params.items() if k[:7] == "parent_"}
    table = np.asarray(params["embedder"], np.float64)
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        whole = prompt + target
        anchors = np.arange(len(prompt) - 1, len(whole) - 1)
        if not target:
            continue
        output = oracles.run_model(model, params, [whole], anchors=anchors[None], num_streams=J)
        for (place, t), j in itertools.product(enumerate(anchors), range(1, 1 + J)):
            if t + 1 + j >= len(whole):
                continue
            z = np.asarray(output.stream_hidden[0, place, j - 1], np.float64)
            row = table[whole[t + j]] / np.sqrt((table[whole[t + j]] ** 2).mean() + 1e-6)
            gate = correction["parent_gate"][j - 1] + correction["parent_query"] @ z / 24**0.5
            moved = z + correction["parent_up"] @ ((correction["parent_down"] @ row) * gate)
            for kept, hidden in ((own, z), (told, moved)):
                scores, right = oracles.log_softmax(table @ hidden), whole[t + 1 + j]
                kept[:, j - 1] += -scores[right], scores.argmax() == right
    assert sums.cross_entropy.shape == (1 + 2 * J,)
    found = np.asarray(sums.cross_entropy[1:]), np.asarray(sums.correct[1:])
    np.testing.assert_allclose(found[0], [*own[0], *told[0]], rtol=LOGIT_TOLERANCE)
    np.testing.assert_array_equal(found[1], [*own[1], *told[1]])
    np.testing.assert_array_equal(sums.weight[1 : 1 + J], sums.weight[1 + J :])
    assert np.abs(own[0] - told[0]).min() > 0.1


@pytest.mark.parametrize("divergence", ["kl", "total_variation", "mixed"])
def test_streams_learn_from_what_the_main_stream_says_there(tiny, sums_of, divergence):
    """By NumPy: stream j at t from the main stream at t + j, whatever the chunks."""
    model, params = tiny
    expected, cross_entropy = np.zeros((2, 1 + J))
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        whole = prompt + target
        main, streams = oracles.forward(params, model.config, whole, range(len(whole)), J)
        for j, t in itertools.product(range(1 + J), range(len(prompt) - 1, len(whole) - 1)):
            if t + 1 + j >= len(whole):
                continue
            log_q = oracles.log_softmax(main[t] if j == 0 else streams[t, j - 1])
            cross_entropy[j] -= log_q[whole[t + 1 + j]]
            if j == 0:  # learns from the data alone
                expected[j] -= log_q[whole[t + 1]]
                continue
            p, q = np.exp(oracles.log_softmax(main[t + j])), np.exp(log_q)
            kl, alpha = (p * np.log(p / q)).sum(), np.minimum(p, q).sum()
            share = {"kl": 1.0, "total_variation": 0.0, "mixed": np.exp(-3 * alpha)}[divergence]
            apart = share * kl + (1 - share) * (1 - alpha)
            expected[j] += 0.3 * -log_q[whole[t + 1 + j]] + 0.7 * apart
    for chunk_size in (1, 12, 1024):
        config = {"distillation": 0.7, "divergence": divergence, "chunk_size": chunk_size}
        sums = sums_of(make_batch(), **config)
        np.testing.assert_allclose(sums.objective, expected, rtol=LOGIT_TOLERANCE)
        np.testing.assert_allclose(sums.cross_entropy, cross_entropy, rtol=LOGIT_TOLERANCE)
    plain = sums_of(make_batch())
    np.testing.assert_array_equal(plain.objective, plain.cross_entropy)


def test_the_teacher_gets_no_gradient():
    """Of the head: (q - p) times the stream's hidden state at each target, and nothing for p."""
    model = oracles.make_model(tie_embeddings=False)
    params = oracles.random_params(model, seed=7)

    def objective(table):
        changed = params | {"lm_head": table}
        config = LossConfig(distillation=1.0, chunk_size=12)
        return loss_sums(model, changed, make_batch(), 5, config).objective[1:].sum()

    expected = np.zeros(params["lm_head"].shape)
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        whole, anchors = prompt + target, range(len(prompt) - 1, len(prompt + target) - 1)
        if not target:
            continue
        output = oracles.run_model(
            model, params, np.array([whole]), anchors=np.array([anchors]), num_streams=J
        )
        main = np.exp(oracles.log_softmax(oracles.logits_of(model, params, output.hidden)[0]))
        streams = np.exp(
            oracles.log_softmax(oracles.logits_of(model, params, output.stream_hidden)[0])
        )
        for a, j in itertools.product(range(len(anchors)), range(1, 1 + J)):
            if a + j < len(anchors):
                apart = streams[a, j - 1] - main[anchors[a] + j]
                expected += np.outer(apart, output.stream_hidden[0, a, j - 1])
    found = jax.grad(objective)(params["lm_head"])
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)


def test_weighted_loss_by_hand():
    """Three main targets and two of stream 1, each at log 7 nats."""
    batch = oracles.batch_of(np.zeros((1, 4)), [1], [4])
    weights = jnp.array([[[1, 1], [1, 1], [1, 0]]], jnp.float32)
    hidden, targets = jnp.zeros((1, 3, 2, 5)), jnp.zeros((1, 3, 2), int)
    scored = Scored(hidden, head(jnp.ones((7, 5))), targets, weights)
    sums = chunked_cross_entropy(scored, 4, Execution())
    alphas = loss_weights(
        LossConfig(main_weight=2.0, stream_weight=0.5), StreamsConfig(1, parent_rank=0)
    )
    np.testing.assert_allclose(
        weighted_loss(sums, alphas, target_weight(batch, (0, 1))),
        2.5 * np.log(7),
        rtol=SUM_TOLERANCE,
    )


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        (StreamsConfig(3, parent_rank=0), [2.0, 0.5, 0.4, 0.32]),
        (StreamsConfig(2, exit_rank=1, parent_rank=0), [2.0, 0.5, 0.4, 0.7]),
        (StreamsConfig(0, medusa_heads=4, parent_rank=0), [2.0, 0.5, 0.4, 0.32, 0.256]),
        (StreamsConfig(0), [2.0]),
        (StreamsConfig(2, parent_rank=5, exit_rank=1), [2.0, 0.5, 0.4, 0.5, 0.4, 0.7]),
        (StreamsConfig(0, parent_rank=5, medusa_heads=2), [2.0, 0.5, 0.4, 0.5, 0.4]),
    ],
    ids=["streams", "early-exit", "medusa", "plain", "parents", "medusa-parents"],
)
def test_weights_that_fall_with_the_depth(streams, expected):
    """The main output and the early exit keep theirs; without decay all streams weigh the same."""
    config = LossConfig(main_weight=2.0, stream_weight=0.5, stream_decay=0.8, exit_weight=0.7)
    np.testing.assert_allclose(loss_weights(config, streams), expected, rtol=1e-6)
    even = loss_weights(dataclasses.replace(config, stream_decay=1.0), streams)
    ahead = streams.num_streams + streams.medusa_heads
    np.testing.assert_array_equal(even[1 : 1 + ahead], np.full(ahead, 0.5, np.float32))


def test_loss_with_decay_equals_numpy(tiny, sums_of):
    """Every target weighs decay ** (depth - 1) over the number of targets at its depth."""
    model, params = tiny
    counts, losses = np.zeros(1 + J), np.zeros(1 + J)
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        whole = prompt + target
        main, streams = oracles.forward(params, model.config, whole, range(len(whole)), J)
        for j in range(1 + J):
            for t in range(len(prompt) - 1, len(whole) - 1 - j):
                scores = main[t] if j == 0 else streams[t, j - 1]
                losses[j] -= oracles.log_softmax(scores)[whole[t + 1 + j]]
                counts[j] += 1
    mean = losses / counts
    expected = 0.9 * mean[0] + 0.3 * (mean[1] + 0.6 * mean[2] + 0.36 * mean[3])
    config = LossConfig(main_weight=0.9, stream_weight=0.3, stream_decay=0.6)
    batch = make_batch()
    weight = target_weight(batch, tuple(range(1 + J)))
    loss = weighted_loss(sums_of(batch), loss_weights(config, model.streams), weight)
    np.testing.assert_allclose(loss, expected, rtol=LOGIT_TOLERANCE)


def test_gradient_of_chunks_equals_plain_autodiff(tiny):
    """Chunks are computed again in the backward pass and may be skipped; so what."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((2, 5, 2, 6)), jnp.float32)
    table = jnp.asarray(rng.standard_normal((9, 6)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 9, (2, 5, 2)))
    weights = jnp.asarray(rng.random((2, 5, 2)) < 0.4, jnp.float32)

    def chunked(hidden, table):
        scored = Scored(hidden, head(table), targets, weights)
        return chunked_cross_entropy(scored, 4, Execution()).cross_entropy.sum()

    def plain(hidden, table):
        log_probs = jax.nn.log_softmax(hidden @ table.T)
        return -(jax.nn.one_hot(targets, 9) * log_probs * weights[..., None]).sum()

    got, expected = (jax.jit(jax.grad(f, (0, 1)))(hidden, table) for f in (chunked, plain))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)

"""The certificate must accept what is right and catch what is wrong."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.evaluation.evidence import (
    Difference,
    adjusted,
    explain,
    first_differences,
    goodness_of_fit,
    make_replay,
)
from ssjax.models.parameters import cast

PROMPTS = oracles.ragged_prompts(seed=8, count=8)
WIDTH = 8 + 12


def test_first_differences_by_hand():
    expected = [(1, 2, 3), (1, 2), (5,), (), (4, 4)]
    found = [(1, 2, 3), (1, 7), (5, 6), (9,), (4,)]
    assert first_differences(expected, found) == [
        Difference(1, 1, 2, 7),
        Difference(2, 1, None, 6),
        Difference(3, 0, None, 9),
        Difference(4, 1, 4, None),
    ]


def test_replay_is_the_models_own_distribution(tiny):
    """Row i scores output i, whatever the padding; against NumPy."""
    model, params = tiny
    replay = make_replay(model, params)
    for prompt, output in (((3, 1), (4, 1, 5)), ((9,), (2, 6, 5, 3, 5))):
        expected, _ = oracles.forward(params, model.config, prompt + output)
        rows = expected[len(prompt) - 1 : -1]
        got = replay(prompt, output, 12)
        np.testing.assert_allclose(got, rows, atol=oracles.LOGIT_TOLERANCE, rtol=0)


def test_bfloat16_differences_are_rounding_and_forced_ones_are_not(tiny):
    model, params = tiny
    narrow = model.clone(config=dataclasses.replace(model.config, dtype="bfloat16"))
    exact = make_replay(model, params)
    rounded = make_replay(narrow, cast(params, jnp.bfloat16))
    decoders = oracles.make_decoder(model, params), oracles.make_decoder(narrow, params)
    prompts = oracles.ragged_prompts(seed=9, count=40)
    outputs = [
        oracles.tokens_of(oracles.generate(decoder, prompts, PlainDrafter()))
        for decoder in decoders
    ]
    differences = first_differences(*outputs)
    assert differences  # 480 tokens of a random model come close to each other somewhere
    explained = explain(differences, prompts, outputs[0], exact, rounded, WIDTH)
    assert all(e.is_rounding and e.noise > 0 for e in explained)

    # A decoder that says the second-best token where the best is far ahead.
    clear = max(range(len(prompts)), key=lambda i: margin(exact, prompts[i], outputs[0][i]))
    forced = [Difference(clear, 0, outputs[0][clear][0], 0)]
    [judged] = explain(forced, prompts, outputs[0], exact, rounded, WIDTH)
    assert not judged.is_rounding


def margin(replay, prompt, output):
    second, first = np.sort(replay(prompt, output, WIDTH)[0])[-2:]
    return first - second


@pytest.mark.parametrize(
    ("sampling", "wrong"),
    [
        (Sampling(1.0), Sampling(0.85)),
        (Sampling(1.3, top_k=3, top_p=0.8), Sampling(1.3, top_k=3, top_p=0.95)),
        (
            Sampling(1.5, repetition_penalty=1.7, presence_penalty=4.0, banned_tokens=(5,)),
            Sampling(1.5, repetition_penalty=1.7, presence_penalty=0.0, banned_tokens=(5,)),
        ),
    ],
)
def test_goodness_of_fit_has_power(tiny, sampling, wrong):
    """Samples with drafts fit what they were drawn from, and nothing near it."""
    model, params = tiny
    decoder = oracles.make_decoder(model, params)
    prompts = PROMPTS * 50
    sampled = oracles.tokens_of(
        oracles.generate(decoder, prompts, BestFirstDrafter(6, 3), sampling=sampling, seed=4)
    )
    replay = make_replay(model, params)

    def fit(sampling):
        exact = adjusted(replay, sampling, oracles.NEVER)
        return goodness_of_fit(prompts, sampled, exact, sampling, WIDTH)

    assert fit(sampling).num_tokens == 12 * len(prompts) and fit(sampling).p_value > 1e-3
    assert fit(wrong).p_value < 1e-6


def test_p_value_against_a_known_table():
    """20 equal bins give 0; all in one bin gives n * 19; 30.14 on 19 degrees is p = 0.05."""
    import jax

    assert float(jax.scipy.special.gammaincc(19 / 2, 30.14 / 2)) == pytest.approx(0.05, abs=1e-4)
    even = goodness_of_fit(
        [(1,)] * 400, [(0,)] * 400, lambda *_: np.zeros((1, 1), np.float32), Sampling(1.0), 2
    )
    assert even.p_value > 1e-3  # one certain token: places are the random points themselves
    spread = goodness_of_fit(
        [(1,)] * 100, [(0,)] * 100, lambda *_: np.zeros((1, 1000), np.float32), Sampling(1.0), 2
    )
    assert spread.statistic == pytest.approx(100 * 19)

"""The PMLR form: the main stream reads its own streams, in training and in every decode pass."""

import dataclasses

import numpy as np
import oracles
import pytest
from oracles import LOGIT_TOLERANCE

from ssjax.config import DecodeConfig, StreamsConfig
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter, make_drafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.tree import StaticTree
from ssjax.evaluation.evidence import goodness_of_fit, make_replay
from ssjax.training.losses import anchor_targets

NUM_NEW = 12


@pytest.fixture(scope="module")
def reading():
    model = oracles.make_model(main_reads_streams=True)
    params = oracles.random_params(model, seed=11)
    return model, params, oracles.make_decoder(model, params)


def greedy(params, config, prompt, max_new_tokens):
    """A whole NumPy pass per token; every position after the prompt's last is an anchor."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_new_tokens:
        anchors = range(len(prompt) - 1, len(tokens))
        logits, _ = oracles.forward(params, config, tokens, anchors, 3, main_reads_streams=True)
        tokens.append(int(logits[-1].argmax()))
    return tuple(tokens[len(prompt) :])


PROMPTS = oracles.ragged_prompts(seed=4, count=6, shortest=1, longest=8)


def test_training_forward_equals_the_oracle(reading):
    """With ragged prompts; the places of anchors that a row has not repeat its last one."""
    model, params, _ = reading
    tokens, lengths = oracles.pad([p + p for p in PROMPTS], 16)
    prompt_lengths = lengths // 2
    batch = oracles.batch_of(tokens, prompt_lengths, lengths)
    anchors, _, _ = anchor_targets(batch, 8, (0, 1, 2, 3))
    output = oracles.run_model(model, params, tokens, anchors=anchors, num_streams=3)
    main = oracles.logits_of(model, params, output.hidden)
    streams = oracles.logits_of(model, params, output.stream_hidden)
    blind = oracles.run_model(oracles.make_model(), params, tokens, anchors=anchors, num_streams=3)
    blind = oracles.logits_of(model, params, blind.hidden)
    for row, (length, first) in enumerate(zip(lengths, prompt_lengths - 1, strict=True)):
        own = np.arange(first, length - 1)  # after the last token nothing is predicted
        expected = oracles.forward(
            params, model.config, tokens[row, :length], own, 3, main_reads_streams=True
        )
        np.testing.assert_allclose(main[row, :length], expected[0], atol=LOGIT_TOLERANCE, rtol=0)
        np.testing.assert_allclose(
            streams[row, : len(own)], expected[1], atol=LOGIT_TOLERANCE, rtol=0
        )
        assert np.abs(blind[row, first:length] - expected[0][first:]).max() > 0.1


def test_plain_decoding_runs_the_streams(reading):
    model, params, decoder = reading
    found = oracles.tokens_of(
        oracles.generate(decoder, PROMPTS, PlainDrafter(), max_new_tokens=NUM_NEW)
    )
    assert found == [greedy(params, model.config, prompt, NUM_NEW) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "drafter",
    [
        BestFirstDrafter(6, 3),
        BestFirstDrafter(4, 2),  # drafts from fewer streams than the main stream reads
        StaticDrafter(StaticTree.from_branching((3, 2)), 3),
    ],
)
def test_speculative_equals_plain(reading, drafter):
    _, _, decoder = reading
    plain = oracles.generate(decoder, PROMPTS, PlainDrafter(), max_new_tokens=NUM_NEW)
    fast = oracles.generate(decoder, PROMPTS, drafter, max_new_tokens=NUM_NEW)
    assert oracles.tokens_of(fast) == oracles.tokens_of(plain)
    assert sum(c.calls for c in fast) < sum(c.calls for c in plain)


def test_sampling_fits_the_model_with_its_streams(reading):
    """And not the same weights without them: the test has power."""
    model, params, decoder = reading
    sampling = Sampling(temperature=1.0)
    prompts = PROMPTS * 40
    sampled = oracles.tokens_of(
        oracles.generate(
            decoder, prompts, BestFirstDrafter(6, 3), max_new_tokens=NUM_NEW, sampling=sampling
        )
    )

    def p_value(judge):
        replay = make_replay(judge, params)
        return goodness_of_fit(prompts, sampled, replay, sampling, width=24).p_value

    assert p_value(model) > 1e-3
    assert p_value(oracles.make_model()) < 1e-6


def test_streams_cannot_be_cut_or_deferred(reading):
    model, params, _ = reading
    with pytest.raises(ValueError, match="3 streams: they run in every call, not 0"):
        oracles.run_model(model, params, np.zeros((1, 2), np.int32))
    with pytest.raises(ValueError, match="cannot be deferred"):
        model.apply({"params": params}, *[None] * 5, 3, method="speculate")


def test_drafter_of_the_config_may_use_fewer_streams():
    assert (
        make_drafter(
            dataclasses.replace(DecodeConfig(), num_streams=2), StreamsConfig(3)
        ).num_streams
        == 2
    )

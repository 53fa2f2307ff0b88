"""Log-probabilities of what was emitted, and seeds of single prompts."""

import jax
import numpy as np
import oracles
import pytest
from oracles import TableDrafter, chain, generate, tokens_of, truth_table

from ssjax.decoding import decoder as decoder_module
from ssjax.decoding import loop
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.errors import UserError

NEW, ROWS = 12, 20
EOS = (2, 4)
SAMPLED = Sampling(temperature=1.3, top_k=6, repetition_penalty=1.5, banned_tokens=(5,))
DRAFTER = BestFirstDrafter(6, 3)


@pytest.fixture(scope="module")
def prompts():
    return oracles.ragged_prompts(13, ROWS)


@pytest.fixture(scope="module")
def decoder(tiny):
    return oracles.make_decoder(*tiny, eos_ids=EOS)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_log_probs_equal_a_teacher_forced_replay(sampling, decoder, prompts, tiny):
    """Of raw logits, for tokens of the prefill, of drafts and of the bonus; ends inside runs."""
    limits = [0, 1, 3] + [9] * 9 + [NEW] * (ROWS - 12)
    plain = generate(decoder, prompts, PlainDrafter(), sampling=sampling, max_new_tokens=limits)
    truth = truth_table(prompts, tokens_of(plain), 8 + NEW)
    right = TableDrafter(truth, np.zeros((1, 5), np.int32), chain(4))
    some = TableDrafter(truth, np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0]]), chain(2).repeat(3, 0))
    ends = set()
    for drafter in (PlainDrafter(), right, some):
        completions = generate(
            decoder, prompts, drafter, sampling=sampling, max_new_tokens=limits, log_probs=True
        )
        assert tokens_of(completions) == tokens_of(plain)
        for prompt, completion in zip(prompts, completions, strict=True):
            output = completion.tokens
            logits = oracles.forward(tiny[1], tiny[0].config, [*prompt, *output])[0]
            after = oracles.log_softmax(logits[len(prompt) - 1 : -1])
            expected = after[np.arange(len(output)), list(output)]
            assert len(completion.log_probs) == len(output)
            np.testing.assert_allclose(completion.log_probs, expected, atol=oracles.LOGIT_TOLERANCE)
            ends.add((completion.finish, drafter is right and 1 < completion.runs[-1] < 5))
    assert ends == {("eos", True), ("eos", False), ("length", True), ("length", False)}


def test_log_probs_are_kept_only_where_asked_for(decoder, prompts):
    assert all(c.log_probs is None for c in generate(decoder, prompts[:4], DRAFTER))
    keys = jax.random.split(jax.random.key(0), 4)
    lengths, limits = np.array([1, 8, 4, 2], np.int32), np.array([6, 5, 0, 12], np.int32)
    rows = Rows(np.ones((4, 8), np.int32), lengths, limits, keys)

    def run(log_probs):
        static = (decoder.model, decoder.params, DRAFTER)
        kept = DecodeSpec(32, EOS, 0, Sampling(), True, log_probs=log_probs)
        state = decoder_module.prefill_program(*static, kept, rows)
        return decoder_module.decode_program(*static, kept, state)

    assert run(False).log_probs is None
    state = run(True)
    place = np.arange(32)
    new = (place >= lengths[:, None]) & (place < np.asarray(state.length)[:, None])
    assert new.any(axis=1).tolist() == [True, True, False, True]
    assert (np.asarray(state.log_probs)[new] < 0).all()
    assert not np.asarray(state.log_probs)[~new].any()


def test_without_log_probs_none_is_computed(decoder, monkeypatch):
    def program():
        spec = DecodeSpec(32, EOS, 0, Sampling(), True)
        static = (decoder.model, decoder.params, DRAFTER, spec)
        keys = jax.random.split(jax.random.key(0), 2)
        rows = Rows(np.ones((2, 4), np.int32), np.array([4, 2]), np.array([3, 3]), keys)
        whole = jax.make_jaxpr(lambda rows: loop.decode(*static, loop.prefill(*static, rows)))
        return str(whole(rows))

    def refuse(*_):
        raise AssertionError("computed")

    expected = program()
    monkeypatch.setattr(loop, "with_log_probs", refuse)
    assert program() == expected


def test_a_prompt_with_its_own_seed_does_not_depend_on_the_others(decoder, prompts):
    sampling = Sampling(temperature=4.0)

    def run(prompts, seed, batch_size):
        completions = generate(
            decoder, prompts, DRAFTER, sampling=sampling, seed=seed, batch_size=batch_size
        )
        return tokens_of(completions)

    seeds = [7, 7, 3, 1000000, 0, -5, 9, 8]
    same = [prompts[0]] * 8
    together = run(same, seeds, 8)
    assert together[0] == together[1] and len(set(together)) > 5
    mixed = run(prompts[:8], seeds, 8)
    assert mixed[0] == together[0]
    order = [5, 2, 7, 0, 1, 6, 3]  # a short last batch, which repeats a row
    again = run([prompts[i] for i in order], [seeds[i] for i in order], 4)
    assert again == [mixed[i] for i in order]
    # Alone, and as the only prompt of a call with one seed.
    for i in (2, 5):
        assert run([prompts[i]], [seeds[i]], 1) == run([prompts[i]], seeds[i], 1) == [mixed[i]]
    # One seed for all: every prompt has a key of its own.
    assert len(set(run(same, 7, 8))) > 5


def test_seeds_that_cannot_work_are_refused(decoder, prompts):
    with pytest.raises(ValueError, match="3 seeds for 2 prompts"):
        generate(decoder, prompts[:2], DRAFTER, seed=[1, 2, 3])
    with pytest.raises(UserError, match="a seed must lie between"):
        generate(decoder, prompts[:2], DRAFTER, seed=2**31)

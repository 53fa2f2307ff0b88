"""A model whose output is not finite says so; no token is made up, and no draft is to blame.

One token of a model has an embedding that is not finite. The model can draw it, but after it every
hidden state is NaN. So the truth is known without that model: what the sound one says, cut after
that token. Drafts hold the token often, and then spoil the whole pass over them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.decoding.completion import check_finite
from ssjax.decoding.draft_model import ModelDrafter
from ssjax.decoding.drafters import (
    BestFirstDrafter,
    MergedDrafter,
    PlainDrafter,
    PromptLookup,
    StaticDrafter,
    Way,
)
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.tree import StaticTree
from ssjax.errors import UserError
from ssjax.models.parameters import unstack_layers

NEW, BAD = 12, 7
LAST = oracles.MODEL.vocab_size - 1  # what an argmax over NaN gives; here an end of sequence
EOS = (LAST, 9)
PROMPTS = oracles.ragged_prompts(5, 24)
LIMITS = [0 if i == 2 else NEW - i % 3 for i in range(len(PROMPTS))]
SAMPLED = Sampling(temperature=1.5)
PLAIN, STREAMS = PlainDrafter(), BestFirstDrafter(6, 3)
WIDE = StaticTree.from_branching((9, 2))
DRAFT_MODEL = oracles.make_model(scan=False, num_streams=0)


def make(dtype="float32"):
    return oracles.make_model(exit_rank=2, medusa_heads=3, tie_embeddings=False, dtype=dtype)


@pytest.fixture(scope="module")
def params():
    return oracles.random_params(make(), seed=10)


def open_decoder(params, bad=None, dtype="float32"):
    """With one number of the embedding of the token BAD replaced."""
    if bad is not None:
        params = params | {"embedder": params["embedder"].at[BAD, 3].set(bad)}
    return oracles.make_decoder(make(dtype), params, EOS)


def decode(decoder, drafter=PLAIN, deferred=True, sampling=oracles.GREEDY, prompts=PROMPTS):
    asked = {"max_new_tokens": LIMITS, "sampling": sampling, "seed": 3, "log_probs": True}
    return oracles.generate(
        decoder, prompts, drafter, deferred=deferred, drafter_params=draft_params(), **asked
    )


@functools.cache
def draft_params():
    """Of the draft model."""
    return unstack_layers(oracles.random_params(oracles.make_model(num_streams=0), seed=0))


def cut(prompt, completion):
    """(tokens, finish) of the model that cannot read BAD, from those of the one that can."""
    tokens = completion.tokens
    if not tokens:
        return tokens, "length"
    if BAD in prompt:
        return (), "error"
    if BAD in tokens[:-1]:
        return tokens[: tokens.index(BAD) + 1], "error"
    return tokens, completion.finish


def ends(completions):
    return [(completion.tokens, completion.finish) for completion in completions]


CASES = {
    "plain": (PLAIN, True, oracles.GREEDY),
    "plain, sampled": (PLAIN, True, SAMPLED),
    "streams": (STREAMS, True, oracles.GREEDY),
    "streams beside, sampled": (STREAMS, False, SAMPLED),
    "wide, pruned": (StaticDrafter(WIDE, 2, kept_nodes=20), True, oracles.GREEDY),
    "heads and lookup": (
        MergedDrafter(BestFirstDrafter(4, 0, num_heads=3), PromptLookup(3, 2)),
        True,
        SAMPLED,
    ),
    "draft model": (ModelDrafter(DRAFT_MODEL, 2), True, oracles.GREEDY),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_ends_where_its_logits_are_not_finite(params, name):
    drafter, deferred, sampling = CASES[name]
    sound = decode(open_decoder(params), sampling=sampling)
    expected = [cut(*pair) for pair in zip(PROMPTS, sound, strict=True)]
    assert {finish for _, finish in expected} == {"eos", "length", "error"}
    cuts = {len(tokens) for tokens, finish in expected if finish == "error"}
    assert 0 in cuts and len(cuts) > 2
    for bad in (jnp.nan, jnp.inf):
        decoder = open_decoder(params, bad)
        found = decode(decoder, drafter, deferred, sampling)
        assert ends(found) == expected
        for completion, whole in zip(found, sound, strict=True):
            count = len(completion.tokens)
            np.testing.assert_allclose(
                completion.log_probs, whole.log_probs[:count], atol=1e-4, rtol=0
            )
            assert sum(completion.runs) == count
            assert len(completion.runs) == completion.calls + 1
            # A token after the nodes that it kept ends every pass but the empty and the last.
            passes = [run for run in completion.runs[1:] if run]
            assert 0 <= len(passes) - (sum(passes) - sum(completion.accepted)) <= 1
    runs = {run for completion in found for run in completion.runs[1:]}
    if name.startswith("plain"):
        assert runs == {0, 1}
    else:  # drafts held, and passes that a draft had spoilt were made again without it
        assert max(runs) > 1
        assert any(0 in completion.runs[1:-1] for completion in found)


def test_bfloat16_fails_at_the_same_tokens(params):
    sound = decode(open_decoder(params, dtype="bfloat16"), STREAMS)
    found = decode(open_decoder(params, jnp.nan, "bfloat16"), STREAMS)
    expected = [cut(*pair) for pair in zip(PROMPTS, sound, strict=True)]
    assert [finish for _, finish in ends(found)] == [finish for _, finish in expected]
    failed = [pair for pair in zip(ends(found), expected, strict=True) if pair[0][1] == "error"]
    assert len(failed) > 5 and all(ours == theirs for ours, theirs in failed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_of_the_head_is_enough(params, value):
    """Also where it would never be the largest; a row that may emit nothing has not failed."""
    head = params["lm_head"].at[BAD, 3].set(value)
    decoder = open_decoder(params | {"lm_head": head})
    found = decode(decoder, STREAMS)
    assert ends(found) == [((), "error" if limit else "length") for limit in LIMITS]
    request = oracles.make_request(PROMPTS[:1], max_new_tokens=5)
    pieces = list(decoder.stream(request, Way(PlainDrafter(), deferred=True)))
    assert ends(pieces) == [((), "error")]
    with pytest.raises(UserError, match=r"^prompt 7: .* not finite from token 1 on; "):
        check_finite(found[6], 7)
    check_finite(dataclasses.replace(found[6], finish="length"), 7)


def test_the_token_that_pads_need_not_be_finite(params):
    """Shorter prompts are padded with 0, which no prompt here holds."""
    prompts = [[1 + token % 8 for token in prompt] for prompt in PROMPTS]
    table = params["embedder"].at[0].set(jnp.nan)
    sound, found = (
        [c for c in decode(open_decoder(some), prompts=prompts) if 0 not in c.tokens[:-1]]
        for some in (params, params | {"embedder": table})
    )
    assert len({len(prompt) for prompt in prompts}) > 3
    assert ends(sound) == [end for end in ends(found) if end[1] != "error"]
    assert len(sound) > 5


def test_draft_scores_that_are_not_numbers_make_a_tree_like_any_other():
    """Some streams NaN, some not: parents come first, stand one level higher and are not unused."""
    from ssjax.decoding.candidates import independent
    from ssjax.decoding.tree import best_first_tree

    rng = np.random.default_rng(0)
    scores = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(8, 3, 13)), jnp.float32))
    spoilt = np.array([[row >> stream & 1 for stream in range(3)] for row in range(8)], bool)
    candidates = independent(jnp.where(spoilt[:, :, None], jnp.nan, scores), 7)
    tree = best_first_tree(jnp.zeros(8, jnp.int32), candidates, 7)
    tokens, parent, depth = (np.asarray(x) for x in (tree.tokens, tree.parent, tree.depth))
    assert ((tokens >= 0) & (tokens < 13)).all()
    for row in range(8):
        for node in range(1, 8):
            above = parent[row, node]
            assert 0 <= above < node and depth[row, node] == depth[row, above] + 1
        siblings = list(zip(parent[row, 1:], tokens[row, 1:], strict=True))
        assert len(set(siblings)) == len(siblings)

"""Greedy decoding of every family, plain and speculative, against the tokens of transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from family_cases import NUM_STREAMS
from oracles import GREEDY, NEVER
from tiny_models import MAX_LENGTH, NEW_TOKENS, PROMPT_LENGTHS

from ssjax.decoding import loop
from ssjax.decoding.decoder import completions_of
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.decoding.tree import root_only
from ssjax.models.execution import Execution

pytestmark = pytest.mark.stress  # loops of every family to compile

DRAFTER = BestFirstDrafter(5, NUM_STREAMS - 1)
SPEC = DecodeSpec(MAX_LENGTH, NEVER, pad_id=0, sampling=GREEDY, deferred=True)


@functools.partial(jax.jit, static_argnums=0)
def decode_three_ways(model, params, prompts, lengths):
    """One prefill and three loops in one program, in half the time that three `Decoder` calls
    compile: plain, streams deferred, streams in the pass."""
    batch = len(prompts)
    keys = jax.vmap(jax.random.key)(lengths)
    limits = jnp.full(batch, NEW_TOKENS)
    rows = Rows(prompts, lengths, limits, keys)
    state = loop.prefill(model, params, DRAFTER, SPEC, rows)
    root = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)[:, 0]
    undrafted = state.replace(draft=root_only(root))
    fused = dataclasses.replace(SPEC, deferred=False)
    return {
        "plain": loop.decode(model, params, PlainDrafter(), SPEC, undrafted),
        "deferred": loop.decode(model, params, DRAFTER, SPEC, state),
        "fused": loop.decode(model, params, DRAFTER, fused, state),
    }


@pytest.fixture(scope="module")
def completions(case):
    """By way of decoding, the completions of all prompts; layers in a loop, as on accelerators."""
    prompts, lengths = oracles.pad(case.prompts, max(PROMPT_LENGTHS))
    model = case.model.clone(execution=Execution("gpu"))
    states = decode_three_ways(model, case.params, prompts, lengths)
    depth = DRAFTER.max_depth
    return {way: completions_of(state, lengths, NEVER, depth) for way, state in states.items()}


def test_greedy_tokens_equal_transformers(case, completions):
    assert [len(ids) for ids in case.greedy] == [NEW_TOKENS] * len(PROMPT_LENGTHS)
    assert max(map(len, case.prompts)) + NEW_TOKENS == MAX_LENGTH
    assert oracles.tokens_of(completions["plain"]) == [tuple(ids) for ids in case.greedy]


@pytest.mark.parametrize("way", ["deferred", "fused"])
def test_speculative_equals_plain(completions, way):
    assert oracles.tokens_of(completions[way]) == oracles.tokens_of(completions["plain"])


def test_deferred_streams_draft_as_streams_in_the_pass(completions):
    """Passes and accepted drafts of each row, which follow from the logits of the streams."""
    assert completions["deferred"] == completions["fused"]
    assert np.sum([completion.accepted for completion in completions["fused"]]) > 0

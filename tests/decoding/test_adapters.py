"""Rows with adapters of their own: what each becomes, and that the base is multiplied once."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.extend.core import jaxprs_in_params

from ssjax.config import AdaptationConfig
from ssjax.decoding import loop
from ssjax.decoding.adapters import AdapterStack
from ssjax.decoding.decoder import (
    Decoder,
    completions_of,
    decode_program,
    prefill_program,
    row_keys,
)
from ssjax.decoding.drafters import BestFirstDrafter, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.decoding.state import DecodeSpec, Rows
from ssjax.models.lora import is_new
from ssjax.models.parameters import merge, split

pytestmark = pytest.mark.stress  # decoders of three adapters

EOS = (3,)
DRAFTER = BestFirstDrafter(5, 3)
SPEC = DecodeSpec(64, EOS, 0, Sampling(), deferred=True)
IDS = np.array([2, 0, 1, 0], np.int32)


def make_decoders(scan):
    """Of one base with three adapters."""
    adaptation = AdaptationConfig("detached", rank=2, alpha=2.0)
    model = oracles.make_model(vocab_size=29, adaptation=adaptation, parent_rank=4, root_rank=4)
    trees = [oracles.random_params(model, seed) for seed in range(3)]
    base = split(trees[0], lambda path: not is_new(path))[0]
    whole = [merge(split(tree, is_new)[0], base) for tree in trees]
    settings = {"eos_ids": EOS, "pad_id": 0, "prompt_buckets": (8,), "scan": scan}
    return [Decoder(model, params, **settings) for params in whole]


def stacked(decoders):
    """The third has no streams."""
    parts = [split(decoder.params, is_new) for decoder in decoders]
    leaves = jax.tree.map(lambda *x: jnp.stack(x), *[own for own, _ in parts])
    return AdapterStack(parts[0][1], leaves, jnp.array([True, True, False]))


def rows_of(prompts):
    tokens, lengths = oracles.pad(prompts, 8)
    keys = row_keys(np.zeros(4, np.int32), np.arange(4, dtype=np.int32))
    return Rows(tokens, lengths, np.full(4, 30, np.int32), keys, adapter=IDS)


@pytest.mark.parametrize("scan", [False, True])
def test_rows_become_what_each_becomes_with_its_adapter_alone(scan):
    decoders = make_decoders(scan)
    model, stack = decoders[0].model, stacked(decoders)
    prompts = oracles.ragged_prompts(0, 4, vocab_size=29)
    rows = rows_of(prompts)
    with jax.set_mesh(decoders[0].mesh):
        state = prefill_program(model, stack, DRAFTER, SPEC, rows, None)
        state = decode_program(model, stack, DRAFTER, SPEC, state, None)
    found = completions_of(state, rows.prompt_length, EOS, 3)
    for prompt, number, completion in zip(prompts, IDS, found, strict=True):
        request = Request([prompt], 30, Sampling(), 0, batch_size=1)
        [alone] = decoders[number].generate(request, Way(DRAFTER, deferred=True))
        assert completion.tokens == alone.tokens
        kept = (0,) * completion.calls if number == 2 else alone.kept
        assert completion.kept == kept


def products(jaxpr):
    """Of all products, those inside of others too: sizes of the operands, and of their batch."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            _, (batch, _) = equation.params["dimension_numbers"]
            shapes = [tuple(sorted(each.aval.shape)) for each in equation.invars]
            yield shapes, len(batch)
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_the_base_is_multiplied_once_for_all_rows():
    """A product with an MLP weight, [40, 24], has no batch, and the rows of all as without."""
    decoders = make_decoders(scan=False)
    model, stack = decoders[0].model, stacked(decoders)

    def of_weight(params, adapters):
        rows = rows_of([[1, 2]] * 4)
        rows = rows if adapters else rows.replace(adapter=None)

        def step(params, rows):
            state = loop.prefill(model, params, DRAFTER, SPEC, rows)
            return loop.decode_step(model, params, DRAFTER, SPEC, state)

        with jax.set_mesh(decoders[0].mesh):
            found = products(jax.make_jaxpr(step)(params, rows).jaxpr)
        return collections.Counter(
            (str(shapes), batch) for shapes, batch in found if (24, 40) in shapes
        )

    alone = of_weight(decoders[0].params, adapters=False)
    assert alone and of_weight(stack, adapters=True) == alone

"""Two small trained models: the greedy ids that another implementation gave, speculation or not."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ssjax.config import StreamsConfig
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter
from ssjax.decoding.tree import StaticTree
from ssjax.models.transformer import Transformer
from ssjax.weights import huggingface

NUM_STREAMS = 3
NLL_TOLERANCE = 2e-5  # five decimals are given
HEAD_TOLERANCE = 1e-4  # of logits of size 8 with five decimals


@pytest.fixture(scope="module", autouse=True)
def full_optimisation():
    """XLA as users run it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def trained(shared):
    """name -> (model, params with random streams, content of expected_greedy.json)."""

    @functools.cache
    def load(name):
        source = huggingface.open_source(shared("weights", f"{name}_hf"))
        expected = json.loads(shared("weights", name, "expected_greedy.json").read_text())
        config = source.model_config("float32")
        params = huggingface.read_params(source, config, num_stream_layers=2)
        noise = np.random.default_rng(0).standard_normal((NUM_STREAMS, config.embed_dim))
        params["stream_embedding"] = jnp.asarray(noise, jnp.float32)
        return (
            Transformer(
                config, StreamsConfig(NUM_STREAMS, 2, parent_rank=0, root_rank=0), scan=True
            ),
            params,
            expected,
        )

    return load


@pytest.mark.parametrize(
    "name, drafter, deferred",
    [
        ("stories260K", PlainDrafter(), True),
        ("stories260K", BestFirstDrafter(8, NUM_STREAMS), True),
        ("stories260K", StaticDrafter(StaticTree.from_branching((3, 1)), NUM_STREAMS), False),
        ("aidreams260K", PlainDrafter(), True),
        ("aidreams260K", BestFirstDrafter(4, 2), False),
    ],
    ids=[
        "stories-plain",
        "stories-best-first",
        "stories-static",
        "dreams-plain",
        "dreams-best-first",
    ],
)
def test_greedy_ids(trained, name, drafter, deferred):
    model, params, expected = trained(name)
    cases, stop = expected["cases"], expected["stop_token"]
    prompts = [case["prompt_ids"] for case in cases]
    limits = [case["max_len"] - len(case["prompt_ids"]) for case in cases]
    decoder = Decoder(model, params, eos_ids=[stop], pad_id=0, prompt_buckets=(16,))
    completions = oracles.generate(
        decoder, prompts, drafter, deferred=deferred, max_new_tokens=limits
    )
    for case, prompt, completion in zip(cases, prompts, completions, strict=True):
        assert [*prompt, *completion.tokens] == case["ids"]


@pytest.mark.parametrize("name", ["stories260K", "aidreams260K"])
def test_first_logits_and_likelihood(trained, name):
    """Of the very ids, after the first of them."""
    model, params, expected = trained(name)
    cases = expected["cases"]
    tokens, lengths = oracles.pad([c["ids"] for c in cases], max(len(c["ids"]) for c in cases))
    logits = oracles.logits_of(model, params, oracles.run_model(model, params, tokens).hidden)
    for case, row, length, ids in zip(cases, logits, lengths, tokens, strict=True):
        head = case["first_step_logits_head"]
        np.testing.assert_allclose(row[0, : len(head)], head, atol=HEAD_TOLERANCE, rtol=0)
        log_probs = oracles.log_softmax(row)[np.arange(length - 1), ids[1:length]]
        assert -log_probs.mean() == pytest.approx(case["mean_nll_of_ids"], abs=NLL_TOLERANCE)

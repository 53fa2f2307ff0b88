"""The engine over several devices, and over weights in eight bits, answers as `generate` does."""

import random

import jax
import meshes
import oracles
import pytest

from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.models.axes import param_shardings
from ssjax.serving.engine import Engine
from ssjax.serving.limits import EngineLimits
from ssjax.serving.ticket import Asked

pytestmark = pytest.mark.stress  # the programs of an engine and of `generate`, each time

LIMITS = EngineLimits(
    num_slots=2,
    max_waiting=20,
    max_prompt_tokens=12,
    max_new_tokens=12,
    max_eos_ids=2,
    passes_per_round=2,
    prefill_tokens=16,
)


@pytest.mark.parametrize(
    ("sizes", "int8"),
    [((1, 1, 2), False), ((2, 1, 1), False), ((1, 2, 2), False), ((1, 1, 1), True)],
)
def test_answers_are_those_of_generate(sizes, int8):
    model, mesh = meshes.make_model(), meshes.make_mesh(sizes)
    params = oracles.random_params(model, seed=0, table_scale=0.5)
    params = jax.device_put(params, param_shardings(params, model.config, mesh))
    settings = {"eos_ids": (7,), "pad_id": 0, "prompt_buckets": (8, 16)}
    decoder = Decoder(model, params, **settings, mesh=mesh, int8=int8)
    way = Way(BestFirstDrafter(5, 3), deferred=True)
    engine = Engine(decoder, way, Sampling(), LIMITS)
    engine.start()
    rng = random.Random(0)
    tickets = [
        engine.submit(
            Asked(
                prompt=tuple(rng.randrange(64) for _ in range(rng.randint(1, 12))),
                max_new_tokens=12,
                sampling=rng.choice((Sampling(), Sampling(0.8, top_k=7, top_p=0.9))),
                seed=seed,
                place=0,
                eos_ids=(7,),
            )
        )
        for seed in range(8)
    ]
    while engine.round():
        pass
    for ticket in tickets:
        asked = ticket.asked
        request = Request(
            [asked.prompt], 12, asked.sampling, asked.seed, batch_size=1, numbers=[asked.place]
        )
        (alone,) = decoder.generate(request, way)
        assert ticket.completion.tokens == alone.tokens
        assert ticket.completion.runs == alone.runs

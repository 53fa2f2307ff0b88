"""Prompts read in pieces, and after beginnings of others, become what they become alone."""

import dataclasses
import random

import oracles
import pytest

from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.serving.engine import Engine
from ssjax.serving.limits import EngineLimits
from ssjax.serving.reading import BLOCK_TOKENS
from ssjax.serving.ticket import Asked

VOCAB = 29
EOS = (3, 11)
GREEDY = Sampling()
WAY = Way(BestFirstDrafter(5, 3), deferred=True)
LIMITS = EngineLimits(
    num_slots=3,
    max_waiting=100,
    max_prompt_tokens=120,
    max_new_tokens=20,
    max_eos_ids=2,
    passes_per_round=1,
    prefill_tokens=24,
    prefill_piece=24,
    prefix_bytes=10**6,
)


@pytest.fixture(scope="module")
def model():
    model = oracles.make_model(vocab_size=VOCAB)
    return model, oracles.random_params(model, seed=4)


def make_decoder(model, buckets=(8, 128)):
    return Decoder(*model, eos_ids=EOS, pad_id=0, prompt_buckets=buckets)


def asked_of(rng, prompt):
    sampling = rng.choice((GREEDY, Sampling(0.8, top_k=7, top_p=0.9)))
    return Asked(tuple(prompt), rng.choice((1, 20, 20)), sampling, rng.randrange(99), 0, EOS)


@pytest.mark.stress
@pytest.mark.parametrize("prefix_bytes", [0, 10**6])
def test_prompts_in_pieces_become_what_they_become_alone(model, compiled, prefix_bytes):
    """Of three pages, cut anywhere and written on; a whole prefill is the judge."""
    limits = dataclasses.replace(LIMITS, prefix_bytes=prefix_bytes)
    engine = Engine(make_decoder(model), WAY, GREEDY, limits)
    engine.start()
    rng, before = random.Random(0), len(compiled)
    pages = [[rng.randrange(VOCAB) for _ in range(110)] for _ in range(3)]
    tickets = []
    while len(tickets) < 24 or engine.num_waiting or engine.num_running:
        if len(tickets) < 24 and rng.random() < 0.5:
            end = [rng.randrange(VOCAB) for _ in range(rng.randint(0, 10))]
            prompt = rng.choice(pages)[: rng.randint(1, 110)] + end
            tickets.append(engine.submit(asked_of(rng, prompt)))
            if rng.random() < 0.1:
                engine.cancel(tickets[-1])
        engine.round()
    assert len(compiled) == before
    alone = make_decoder(model, buckets=(128,))
    for ticket in tickets:
        asked, found = ticket.asked, ticket.completion
        request = Request(
            [asked.prompt], asked.max_new_tokens, asked.sampling, asked.seed, 1, numbers=[0]
        )
        [expected] = alone.generate(request, WAY)
        if found.finish == "cancelled":
            assert found.tokens == expected.tokens[: len(found.tokens)]
        else:
            assert dataclasses.replace(found, log_probs=None) == expected
    known = sum(ticket.known for ticket in tickets)
    if prefix_bytes:
        assert engine.prefixes.hits == known > 10 * BLOCK_TOKENS
    else:
        assert engine.prefixes is None and known == 0


@pytest.mark.stress
def test_others_go_on_while_a_long_prompt_is_read(model):
    """Five pieces in five rounds; then nothing of it is read again but its last block."""
    engine = Engine(make_decoder(model), WAY, GREEDY, LIMITS)
    engine.start()
    page = tuple(i % VOCAB for i in range(120))
    short = engine.submit(Asked((1, 2), 20, GREEDY, 0, 0, ()))
    engine.round()
    long = engine.submit(Asked(page, 5, GREEDY, 0, 0, ()))
    lengths = []
    while not long.completion.tokens:
        engine.round()
        lengths.append(len(short.completion.tokens))
    assert len(lengths) == 5 and lengths[:3] == sorted(set(lengths[:3]))
    engine.cancel(short)
    again = engine.submit(Asked(page, 5, GREEDY, 0, 0, ()))
    while engine.round():
        pass
    assert again.completion.tokens == long.completion.tokens
    assert (long.known, again.known) == (0, 3 * BLOCK_TOKENS)


def test_what_cannot_be_read_in_pieces_is_refused(model):
    limits = dataclasses.replace(LIMITS, prefill_piece=0)
    with pytest.raises(UserError, match="prefill_piece"):
        Engine(make_decoder(model), WAY, GREEDY, limits)
    reads = oracles.make_model(vocab_size=VOCAB, main_reads_streams=True)
    decoder = make_decoder((reads, oracles.random_params(reads, seed=4)))
    with pytest.raises(UserError, match="main rows read streams"):
        Engine(decoder, Way(BestFirstDrafter(5, 3), deferred=False), GREEDY, LIMITS)

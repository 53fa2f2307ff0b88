"""Outputs that follow a grammar are those of the plain loop under the same grammar."""

import itertools
import json
import random
import types

import jax
import numpy as np
import openai
import oracles
import pytest
import small_tokenizers

from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, PromptLookup, Way
from ssjax.decoding.sampling import Sampling
from ssjax.serving.engine import Engine
from ssjax.serving.extras import Extras
from ssjax.serving.grammar import Grammar, Grammars, json_schema
from ssjax.serving.limits import EngineLimits
from ssjax.serving.sizes import Size
from ssjax.serving.ticket import Asked

EMPTY = types.SimpleNamespace(content=())

pytestmark = pytest.mark.stress  # an engine with two programs of every size, and a server

LIMITS = EngineLimits(
    num_slots=3,
    max_waiting=100,
    max_prompt_tokens=32,
    max_new_tokens=32,
    max_eos_ids=4,
    passes_per_round=2,
    prefill_tokens=64,
)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Anna", "Bob"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
GRAMMARS = (
    json_schema(SCHEMA),
    json_schema({"type": "object"}),
    Grammar("regex", "(Anna|Bob) wants (two )?tickets[.]{1,3}"),
    Grammar("choice", json.dumps(["a red coat", "a car", "\u00e9"])),
    Grammar("grammar", 'root ::= "Why" " " ("Bob" | "Dan") "?"*'),
)
SETTINGS = (Sampling(), Sampling(1.3, top_k=3), Sampling(0.8, top_p=0.7, min_p=0.1))
# What is drafted comes from the model, from the prompt, or from nowhere.
SIZES = (
    Size(1, Way(PromptLookup(5, 1), True), 1.0, 1.0),
    Size(2, Way(BestFirstDrafter(4, 3), False), 1.0, 1.5),
    Size(3, Way(PlainDrafter(), True), 1.0, 2.0),
)


@pytest.fixture(scope="module")
def world():
    """A model with the tokens of a tokenizer."""
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "tests")
    model = oracles.make_model(vocab_size=tokenizer.vocab_size)
    return tokenizer, model, oracles.random_params(model, seed=4)


def by_the_plain_loop(world, asked):
    """Whole NumPy forward passes, and the library's matcher fed from the start for each token."""
    import llguidance
    import llguidance.numpy

    tokenizer, model, params = world
    grammars = Grammars(tokenizer, tokenizer.vocab_size)

    def logits_after(tokens):
        logits = oracles.forward(params, model.config, tokens)[0][-1].copy()
        if asked.grammar is not None:
            matcher = grammars._compiled(asked.grammar).deep_copy()
            for token in tokens[len(asked.prompt) :]:
                assert matcher.consume_token(int(token))
            bits = llguidance.numpy.allocate_token_bitmask(1, len(logits))
            llguidance.numpy.fill_next_token_bitmask(matcher, bits)
            llguidance.numpy.apply_token_bitmask_inplace(logits, bits)
        return logits

    key = jax.random.fold_in(jax.random.key(asked.seed), asked.place)
    return oracles.continued(
        logits_after, asked.prompt, asked.max_new_tokens, asked.eos_ids, asked.sampling, key
    )


def test_outputs_are_those_of_the_plain_loop(world):
    """Beside requests without a grammar, at changing loads; nothing compiles, drafts are kept."""
    tokenizer, model, params = world
    decoder = Decoder(model, params, eos_ids=tokenizer.eos_ids, pad_id=0, prompt_buckets=(32,))
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    engine = Engine(decoder, SIZES[0].way, Sampling(), LIMITS, extras=Extras(SIZES, grammars))
    engine.start()
    rng, tickets, compiled = random.Random(0), [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "compile" in event else None
    )
    texts = ("Bob wants two tickets..", "Why Dan???", '{"name":"Bob","old":true}', "a red coat")
    asked = [
        Asked(
            prompt=tuple(tokenizer.encode(rng.choice(texts))[:32]),
            max_new_tokens=rng.choice((1, 5, 24, 24)),
            sampling=sampling,
            seed=rng.randrange(1000),
            place=rng.randrange(3),
            eos_ids=tokenizer.eos_ids,
            grammar=grammar,
        )
        for grammar, sampling in itertools.product((*GRAMMARS, None), SETTINGS)
    ]
    rng.shuffle(asked)
    used, waiting = set(), list(asked)
    while waiting or engine.num_waiting or engine.num_running:
        if waiting and rng.random() < 0.4:
            tickets.append(engine.submit(waiting.pop(0)))
        engine.round()
        used.add(engine.size.rows)
    assert not compiled and used == {1, 2, 3}
    for each, ticket in zip(asked, tickets, strict=True):
        assert ticket.completion.tokens == by_the_plain_loop(world, each), each.grammar
        assert ticket.completion.finish in ("eos", "length")
    kept = [sum(ticket.completion.kept) for ticket in tickets if ticket.asked.grammar]
    assert sum(kept) > 0
    ended = [t for t in tickets if t.asked.grammar and t.completion.finish == "eos"]
    assert len(ended) > 2


def test_a_client_of_openai_gets_valid_json_and_likeliest_tokens(run, serve):
    grammars = Grammars(run.tokenizer, run.decoder.model.config.vocab_size)
    with (
        serve(extras=Extras(grammars=grammars, num_likeliest=4)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "Who?"}]}
        named = {"type": "json_schema", "json_schema": {"name": "who", "schema": SCHEMA}}
        for more in ({}, {"temperature": 1.5, "seed": 3}, {"n": 3, "temperature": 1.0}):
            found = client.chat.completions.create(
                **chat, **more, max_tokens=48, response_format=named
            )
            for choice in found.choices:
                value = json.loads(choice.message.content)
                assert choice.finish_reason == "stop"
                assert value["name"] in ("Anna", "Bob") and value["old"] in (True, False)
        stream = client.chat.completions.create(
            **chat, max_tokens=48, response_format=named, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert json.loads(text).keys() == {"name", "old"}
        for outputs in ({"choice": ["yes", "no"]}, {"regex": "yes|no"}):
            found = client.completions.create(
                model="tiny", prompt="Well?", extra_body={"structured_outputs": outputs}
            )
            assert found.choices[0].text in ("yes", "no")
        for wrong in (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            {"structured_outputs": {"regex": "(a"}},
            {"structured_outputs": {"regex": "a"}, "ignore_eos": True},
            {"structured_outputs": {"regex": "a", "json_object": True}},
            {"guided_json": {}},
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**chat, extra_body=wrong)
            assert "\n" not in caught.value.body["message"]
        check_likeliest(client, chat)
        served.wait_idle()


def check_likeliest(client, chat):
    """As OpenAI has them, whole and as a stream; greedy tokens are the likeliest."""
    asked = chat | {"max_tokens": 9, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    chunks = [c for c in client.chat.completions.create(**asked, stream=True) if c.choices]
    streamed = [each for c in chunks for each in (c.choices[0].logprobs or EMPTY).content]
    assert [each.top_logprobs for each in streamed] == [each.top_logprobs for each in whole]
    assert len(whole) == 9
    for each in whole:
        assert len(each.top_logprobs) == 3 and each.top_logprobs[0].token == each.token
        values = [best.logprob for best in each.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] == each.logprob
    found = client.completions.create(model="tiny", prompt="Well?", max_tokens=5, logprobs=2)
    told = found.choices[0].logprobs
    for token, value, best in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert best[token] == value == max(best.values()) and 1 <= len(best) <= 3
    for wrong in ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 5}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**chat, **wrong)


def test_a_grammar_that_becomes_too_complex_ends_its_request_alone(world, monkeypatch):
    tokenizer, model, params = world
    decoder = Decoder(model, params, eos_ids=tokenizer.eos_ids, pad_id=0, prompt_buckets=(32,))
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    engine = Engine(decoder, SIZES[0].way, Sampling(), LIMITS, extras=Extras(SIZES, grammars))
    engine.start()
    plain = Asked((1, 2), 9, Sampling(), 0, 0, tokenizer.eos_ids)
    tickets = [
        engine.submit(plain),
        engine.submit(Asked((1, 2), 9, Sampling(), 0, 0, tokenizer.eos_ids, GRAMMARS[1])),
    ]
    engine.round()
    follower, _ = engine._constraints._followers[1]
    follower.failed = True
    while engine.round():
        pass
    assert tickets[1].completion.finish == "too complex"
    assert tickets[0].completion.tokens == by_the_plain_loop(world, plain)
    assert not engine._constraints.active and np.all(engine._constraints.masks == -1)

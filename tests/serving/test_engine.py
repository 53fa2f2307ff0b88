"""Whatever runs beside it and whenever it comes, a request becomes what it becomes alone."""

import dataclasses
import random
import threading

import jax
import numpy as np
import oracles
import pytest

from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.serving.engine import Engine, Full, Stopped
from ssjax.serving.extras import Extras
from ssjax.serving.limits import EngineLimits
from ssjax.serving.sizes import Size
from ssjax.serving.slots import Slots
from ssjax.serving.ticket import Asked

VOCAB = 29
EOS = (3, 11)
LIMITS = EngineLimits(
    num_slots=3,
    max_waiting=100,
    max_prompt_tokens=12,
    max_new_tokens=20,
    max_eos_ids=4,
    passes_per_round=2,
    prefill_tokens=16,
)
WAY = Way(BestFirstDrafter(5, 3), deferred=True)
GREEDY = Sampling()
SAMPLED = Sampling(0.8, top_k=7, top_p=0.9, min_p=0.02)


@pytest.fixture(scope="module")
def model():
    model = oracles.make_model(vocab_size=VOCAB)
    return model, oracles.random_params(model, seed=4)


def make_decoder(model, eos_ids=EOS, buckets=(8, 16)):
    return Decoder(*model, eos_ids=eos_ids, pad_id=0, prompt_buckets=buckets)


@pytest.fixture(scope="module")
def engine(model):
    engine = Engine(make_decoder(model), WAY, GREEDY, LIMITS)
    engine.start()
    return engine


@pytest.fixture(scope="module")
def alone(model):
    """Tokens, finish and passes that `generate` gives for one request; it has one bucket."""
    decoders = {}

    def decode(asked, way=WAY):
        # A decoder needs an end of sequence: for those without, one that no model has.
        eos_ids = asked.eos_ids or oracles.NEVER
        if eos_ids not in decoders:
            decoders[eos_ids] = make_decoder(model, eos_ids, buckets=(16,))
        request = Request(
            [asked.prompt],
            asked.max_new_tokens,
            asked.sampling,
            asked.seed,
            batch_size=1,
            numbers=[asked.place],
        )
        (completion,) = decoders[eos_ids].generate(request, way)
        return completion

    return decode


def random_request(rng, settings, eos_ids=(EOS,)):
    return Asked(
        prompt=tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))),
        max_new_tokens=rng.choice((0, 1, 2, 7, 20, 20)),
        sampling=rng.choice(settings),
        seed=rng.randrange(-(2**31), 2**31),
        place=rng.randrange(5),
        eos_ids=rng.choice(eos_ids),
    )


def without_log_probs(completion):
    return dataclasses.replace(completion, log_probs=None)


def run_until_idle(engine):
    while engine.round():
        pass
    assert engine.num_running == engine.num_waiting == 0


def check_random_arrivals(engine, alone, compiled, seed, count, settings, eos_ids):
    """Requests at random rounds, some cancelled; every other one as alone, nothing compiled."""
    rng = random.Random(seed)
    before = len(compiled)
    tickets, given_up = [], []
    while len(tickets) < count or engine.num_waiting or engine.num_running:
        for _ in range(rng.choice((0, 0, 1, 3)) if len(tickets) < count else 0):
            tickets.append(engine.submit(random_request(rng, settings, eos_ids)))
            if rng.random() < 0.2:
                given_up.append(tickets[-1])
        if given_up and rng.random() < 0.5:
            engine.cancel(given_up.pop())
        engine.round()
    assert len(compiled) == before
    finished = [ticket.completion.finish for ticket in tickets]
    assert {"eos", "length", "cancelled"} <= set(finished)
    for ticket in tickets:
        found, expected = ticket.completion, alone(ticket.asked)
        if found.finish == "cancelled":
            assert found.tokens == expected.tokens[: len(found.tokens)]
        else:
            assert without_log_probs(found) == expected
            assert len(found.log_probs) == len(found.tokens)
    assert engine.num_running == 0


def test_random_arrivals_become_what_each_becomes_alone(engine, alone, compiled):
    check_random_arrivals(engine, alone, compiled, 0, 40, (GREEDY, SAMPLED), (EOS,))
    totals = engine.totals
    assert 0 < sum(totals.kept_by_depth) < totals.new_tokens
    assert totals.finished.total() >= 40


@pytest.mark.stress
def test_every_setting_beside_every_other(engine, alone, compiled):
    settings = (
        GREEDY,
        SAMPLED,
        Sampling(1.0),
        Sampling(1.7, top_k=2),
        Sampling(0.9, top_p=0.5),
        Sampling(1.2, min_p=0.3),
    )
    check_random_arrivals(engine, alone, compiled, 1, 300, settings, (EOS, (), (5,), (3, 5, 7)))


def test_greedy_requests_are_plain_decoding(engine, alone):
    """Against decoding without drafts; the log-probabilities are those of `generate`."""
    asked = Asked((5, 2, 8), 20, GREEDY, 0, 0, ())
    ticket = engine.submit(asked)
    run_until_idle(engine)
    plain = alone(asked, Way(PlainDrafter(), deferred=True))
    assert ticket.completion.tokens == plain.tokens
    assert ticket.completion.calls < plain.calls


def test_who_wants_no_drafts_is_decoded_plainly(engine, alone, compiled):
    """A token a pass, the same tokens, greedy or sampled, beside one that is drafted for."""
    before, counted = len(compiled), engine.totals.passes
    drafted = engine.submit(Asked((5, 2, 8), 20, GREEDY, 0, 0, ()))
    tickets = []
    for sampling in (GREEDY, SAMPLED):
        asked = Asked((5, 2, 8), 20, sampling, 7, 0, (), drafting=False, watched=True)
        tickets.append(engine.submit(asked))
        run_until_idle(engine)
    assert len(compiled) == before
    for ticket in tickets:
        plain = alone(ticket.asked, Way(PlainDrafter(), deferred=True))
        found = ticket.completion
        assert (found.tokens, found.runs) == (plain.tokens, plain.runs) == (plain.tokens, (1,) * 20)
        assert all(len(draft.tokens) == 1 for draft in ticket.drafts.values())
    assert sum(drafted.completion.kept) > 0
    assert engine.totals.passes - counted == drafted.completion.calls


def longest_match(draft, following):
    """How many of the tokens that follow the root some path of a draft spells; by trying all."""
    paths = {0: ()}
    for node in range(1, len(draft.tokens)):
        paths[node] = (*paths[draft.parents[node]], draft.tokens[node])
    return max(len(path) for path in paths.values() if path == following[: len(path)])


def test_who_watches_alone_sees_the_draft_of_every_pass(engine):
    """What was kept is the longest path that the text itself follows."""
    asked = Asked((5, 2, 8), 20, GREEDY, 0, 0, (), watched=True)
    ticket = engine.submit(asked)
    run_until_idle(engine)
    found = ticket.completion
    assert sorted(ticket.drafts) == list(range(1, found.calls + 1)) and sum(found.kept) > 0
    for number, draft in ticket.drafts.items():
        began = sum(found.runs[:number])
        assert draft.tokens[0] == found.tokens[began - 1] and len(draft.tokens) <= 6
        kept = found.kept[number - 1]
        assert kept == longest_match(draft, found.tokens[began:])
        path = draft.kept(found.tokens[began : began + kept])
        nodes = [node for node, on_path in enumerate(path) if on_path]
        assert [draft.tokens[node] for node in nodes[1:]] == list(found.tokens[began:][:kept])
        assert [draft.parents[node] for node in nodes] == [-1, *nodes[:-1]]


def test_who_watches_beside_others_changes_nothing_for_them(engine, monkeypatch):
    """As many passes between two looks as ever; nothing is read where nobody watches."""
    passes = []
    run = engine._slots.run
    kept = lambda n, *size, **how: passes.append(n) or run(n, *size, **how)  # noqa: E731
    monkeypatch.setattr(engine._slots, "run", kept)
    quiet = Asked((5, 2, 8), 20, GREEDY, 0, 0, ())
    tickets = [engine.submit(quiet), engine.submit(dataclasses.replace(quiet, watched=True))]
    run_until_idle(engine)
    assert set(passes) == {LIMITS.passes_per_round}
    assert tickets[0].drafts == {} and tickets[1].drafts
    assert tickets[0].completion == tickets[1].completion
    monkeypatch.setattr(engine._slots, "read_draft", None)
    engine.submit(quiet)
    run_until_idle(engine)


def test_slots_are_given_in_order_of_arrival(engine):
    asked = Asked((1, 2), 20, GREEDY, 0, 0, ())
    tickets = [engine.submit(asked) for _ in range(7)]
    began = []
    while engine.round():
        began += [i for i, t in enumerate(tickets) if t.times.began and i not in began]
        assert engine.num_running <= LIMITS.num_slots
    assert began == sorted(began) and len(began) >= 6
    times = [ticket.times for ticket in tickets]
    assert all(t.arrived <= t.began <= t.first_token <= t.ended for t in times)
    assert len({ticket.completion.tokens for ticket in tickets}) == 1


def test_a_round_reads_no_more_prompt_tokens_than_its_budget(engine):
    """Two short prompts, of 8 tokens padded, fill the budget of 16; a long one does so alone."""
    short, long = (Asked((1,) * n, 20, GREEDY, 0, 0, ()) for n in (2, 12))
    for asked, expected in (((short,) * 3, 2), ((long,) * 3, 1), ((short, long), 1)):
        tickets = [engine.submit(each) for each in asked]
        engine.round()
        assert engine.num_running == expected
        for ticket in tickets:
            engine.cancel(ticket)
        run_until_idle(engine)


def test_a_slot_that_somebody_waits_for_is_not_left_empty(model):
    """The round ends with the shortest request, but only while one waits."""
    limits = dataclasses.replace(LIMITS, passes_per_round=1000, prefill_tokens=100)
    engine = Engine(make_decoder(model), WAY, GREEDY, limits)
    engine.start()
    short, long = (Asked((1, 2), n, GREEDY, 0, 0, ()) for n in (2, 20))
    tickets = [engine.submit(each) for each in (short, long, long, long)]
    assert engine.round()
    assert [ticket.ended for ticket in tickets] == [True, False, False, False]
    assert not engine.round()
    assert all(ticket.ended for ticket in tickets)


def test_deadlines_and_cancellation(engine):
    endless = Asked((1, 2), 20, GREEDY, 0, 0, ())
    late = engine.submit(dataclasses.replace(endless, deadline=0.0))
    running = engine.submit(endless)
    engine.round()
    assert late.completion.finish == "timeout" and late.completion.tokens == ()
    some = running.completion.tokens
    assert some and not running.ended
    engine.cancel(running)
    engine.round()
    assert running.completion.finish == "cancelled" and running.completion.tokens == some
    engine.cancel(running)  # of one that has ended: nothing
    run_until_idle(engine)
    assert running.completion.finish == "cancelled"


def test_what_cannot_work_is_refused(engine):
    good = Asked((1, 2), 5, GREEDY, 0, 0, EOS)
    for change, message in (
        ({"prompt": ()}, "empty"),
        ({"prompt": (1,) * 13}, "13 tokens"),
        ({"prompt": (VOCAB,)}, "outside"),
        ({"prompt": (-1,)}, "outside"),
        ({"max_new_tokens": 21}, "21 new tokens"),
        ({"max_new_tokens": -1}, "new tokens"),
        ({"eos_ids": (1, 2, 3, 4, 5)}, "5 ids"),
        ({"seed": 2**31}, "seed"),
        ({"sampling": Sampling(repetition_penalty=2.0)}, "temperature"),
        ({"frequency_penalty": 0.5}, "frequency"),
    ):
        with pytest.raises(UserError, match=message):
            engine.submit(dataclasses.replace(good, **change))
    assert engine.num_waiting == 0


def test_a_full_queue_refuses_and_a_thread_serves(model, alone):
    """Submitted before the thread runs; then stopped with one request still running."""
    engine = Engine(make_decoder(model), WAY, GREEDY, dataclasses.replace(LIMITS, max_waiting=2))
    engine.start()
    asked = [Asked((i, 2), 9, GREEDY, 0, 0, EOS) for i in range(1, 4)]
    changed = threading.Semaphore(0)
    tickets = [engine.submit(each, changed.release) for each in asked[:2]]
    with pytest.raises(Full, match="2 requests"):
        engine.submit(asked[2])
    thread = threading.Thread(target=engine.run)
    thread.start()
    while not all(ticket.ended for ticket in tickets):
        assert changed.acquire(timeout=60)
    engine.stop()
    thread.join(60)
    assert not engine.ready
    for each, ticket in zip(asked, tickets, strict=False):
        assert without_log_probs(ticket.completion) == alone(each)
    with pytest.raises(Stopped):
        engine.submit(asked[2])


def test_a_device_that_fails_ends_every_request(model, monkeypatch):
    """Those that run and those that wait; who comes later is refused."""
    engine = Engine(make_decoder(model), WAY, GREEDY, LIMITS)
    engine.start()
    tickets = [engine.submit(Asked((i, 2), 9, GREEDY, 0, 0, EOS)) for i in range(1, 7)]
    engine.round()

    def fail(*_, **__):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Slots, "run", fail)
    with pytest.raises(RuntimeError, match="gone"):
        engine.run()
    assert {ticket.completion.finish for ticket in tickets} <= {"cancelled", "eos", "length"}
    assert tickets[-1].completion.finish == "cancelled" and str(engine.problem).endswith("gone")
    assert not engine.ready and engine.num_running == engine.num_waiting == 0
    with pytest.raises(Stopped):
        engine.submit(tickets[0].asked)


def test_a_model_that_is_not_finite_ends_requests_with_an_error(model):
    net, params = model
    broken = jax.tree.map(lambda x: x * np.nan, params)
    engine = Engine(make_decoder((net, broken)), WAY, GREEDY, LIMITS)
    engine.start()
    ticket = engine.submit(Asked((1, 2), 9, SAMPLED, 0, 0, EOS))
    run_until_idle(engine)
    assert (ticket.completion.finish, ticket.completion.tokens) == ("error", ())


def sized(seconds, **extras):
    """One, two and three busy slots each have a size of their own that is the fastest."""
    sizes = [
        Size(rows, Way(drafter, deferred), 1.0, each)
        for (rows, drafter, deferred), each in zip(
            (
                (1, BestFirstDrafter(5, 3), True),
                (2, BestFirstDrafter(2, 3), False),
                (3, PlainDrafter(), True),
            ),
            seconds,
            strict=True,
        )
    ]
    return Extras(tuple(sizes), **extras)


@pytest.mark.stress
def test_a_load_that_changes_changes_no_output(model, alone, compiled):
    """Rows and nodes of the passes change with it, and no request does: tokens as alone."""
    engine = Engine(make_decoder(model), WAY, GREEDY, LIMITS, extras=sized((1.0, 1.5, 2.0)))
    engine.start()
    rng, before, used, tickets = random.Random(3), len(compiled), set(), []
    while len(tickets) < 40 or engine.num_waiting or engine.num_running:
        for _ in range(rng.choice((0, 0, 0, 1, 3)) if len(tickets) < 40 else 0):
            tickets.append(engine.submit(random_request(rng, (GREEDY, SAMPLED))))
        engine.round()
        used.add(engine.size.rows)
    assert used == {1, 2, 3} and len(compiled) == before
    for ticket in tickets:
        found, expected = ticket.completion, alone(ticket.asked)
        assert (found.tokens, found.finish) == (expected.tokens, expected.finish)
        assert len(ticket.drafted) == found.calls
        assert all(k <= n for k, n in zip(found.kept, ticket.drafted, strict=True))
    drafted = [nodes for ticket in tickets for nodes in ticket.drafted]
    assert {0, 2, 5} == set(drafted) and engine.totals.draft_nodes == sum(drafted)


@pytest.mark.stress
def test_sizes_are_measured_at_the_start(model, alone):
    """Where their seconds are not given; whatever they are, outputs are the same."""
    engine = Engine(make_decoder(model), WAY, GREEDY, LIMITS, extras=sized((None, None, None)))
    engine.start()
    asked = [Asked((i, 2), 9, GREEDY, 0, 0, EOS) for i in range(5)]
    tickets = [engine.submit(each) for each in asked]
    run_until_idle(engine)
    assert [t.completion.tokens for t in tickets] == [alone(each).tokens for each in asked]


@pytest.mark.stress
def test_penalties_and_likeliest_tokens_are_those_of_each_request(model, compiled):
    """By the plain loop, beside requests without; while nobody asks, tokens are not counted."""
    extras = Extras(penalties=True, num_likeliest=4)
    engine = Engine(make_decoder(model), WAY, GREEDY, LIMITS, extras=extras)
    engine.start()
    settings = (
        GREEDY,
        SAMPLED,
        Sampling(repetition_penalty=1.7),
        Sampling(presence_penalty=2.5),
        Sampling(0.8, top_k=7, repetition_penalty=0.6, presence_penalty=-1.0),
    )
    rng, before, tickets = random.Random(5), len(compiled), []
    while len(tickets) < 20 or engine.num_waiting or engine.num_running:
        for _ in range(rng.choice((0, 0, 0, 1, 3)) if len(tickets) < 20 else 0):
            asked = random_request(rng, settings)
            if asked.sampling.repetition_penalty == 1 and rng.random() < 0.4:
                asked = dataclasses.replace(asked, frequency_penalty=rng.choice((1.5, -0.7)))
            likeliest = rng.choice((0, 0, 1, 3, 4))
            tickets.append(engine.submit(dataclasses.replace(asked, num_likeliest=likeliest)))
        engine.round()
    assert len(compiled) == before
    different = 0
    for ticket in tickets:
        asked, found = ticket.asked, ticket.completion
        assert found.tokens == by_the_plain_loop(model, asked)
        check_likeliest(model, asked, found)
        free = dataclasses.replace(asked.sampling, repetition_penalty=1.0, presence_penalty=0.0)
        free = dataclasses.replace(asked, sampling=free, frequency_penalty=0.0)
        different += asked.penalised and found.tokens != by_the_plain_loop(model, free)
    assert different > 4


def check_likeliest(model, asked, found):
    """Against NumPy, which sorts whole rows."""
    if not asked.num_likeliest:
        assert found.likeliest is None
        return
    net, params = model
    assert len(found.likeliest or ()) == len(found.tokens)
    logits = oracles.forward(params, net.config, [*asked.prompt, *found.tokens])[0]
    expected = oracles.log_softmax(logits[len(asked.prompt) - 1 : -1])
    for best, row in zip(found.likeliest or (), expected, strict=True):
        values = np.sort(row)[::-1][: asked.num_likeliest]
        np.testing.assert_allclose([value for _, value in best], values, atol=1e-4)
        np.testing.assert_allclose([row[token] for token, _ in best], values, atol=1e-4)


def by_the_plain_loop(model, asked):
    """Whole NumPy forward passes, from whose logits the frequency penalty has been taken.

    The penalties come in an order only where there is one of repetition.
    """
    net, params = model

    def logits_after(tokens):
        logits = oracles.forward(params, net.config, tokens)[0][-1].copy()
        for token in tokens[len(asked.prompt) :]:
            logits[token] -= asked.frequency_penalty
        return logits

    key = jax.random.fold_in(jax.random.key(asked.seed), asked.place)
    limit = asked.max_new_tokens
    return oracles.continued(logits_after, asked.prompt, limit, EOS, asked.sampling, key)

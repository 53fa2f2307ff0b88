"""Ways timed in turn: the figures by hand, intervals that cover what they should."""

import numpy as np
import oracles
import pytest

from ssjax.decoding.completion import Completion
from ssjax.decoding.decoder import BatchTiming, num_compilations
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, PromptLookup, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.evaluation import benchmark_tables, speed
from ssjax.evaluation.speed import Entry, TimedBatch


def batch(num_tokens, prefill, decode, calls):
    kept = (*(1,) * (calls - 1), 0)
    runs = (1, num_tokens - calls, *(1,) * (calls - 1))
    completion = Completion(tuple(range(num_tokens)), "length", runs, kept, max_depth=1)
    return TimedBatch((completion,), BatchTiming(prefill, decode))


PLAIN = [batch(11, 0.5, 1.0, 10), batch(21, 0.5, 2.0, 20)]
FAST = [batch(11, 0.5, 0.5, 5), batch(21, 0.7, 0.8, 6)]


def test_figures_by_hand(tiny):
    way = Entry(oracles.make_decoder(*tiny), Way(BestFirstDrafter(4, 3), True))
    found = benchmark_tables.describe(way, PLAIN, FAST)
    assert found["identical"] == 2 and found["tokens"] == 32 and found["calls"] == 11
    assert found["tokens_per_call"] == 30 / 11
    assert found["call_reduction"] == 30 / 11
    assert found["first_token_ms"] == pytest.approx(600)
    assert found["tokens_per_second"]["value"] == pytest.approx(32 / 2.5)
    assert found["speedup"]["value"] == pytest.approx(4.0 / 2.5)
    assert found["decode_speedup"] == pytest.approx(3.0 / 1.3)
    assert found["step_cost"] == pytest.approx(30 / 11 / (3.0 / 1.3))
    assert found["acceptance_by_depth"] == [9 / 11]
    assert found["draft_nodes"] == 4 and found["extra_parameters"] == 3 * 24


def test_extra_parameters_are_those_of_the_streams_that_run():
    model = oracles.make_model(init_rank=2)
    decoder = oracles.make_decoder(model, oracles.random_params(model, seed=0))
    for drafter, extra in ((BestFirstDrafter(4, 3), 3 * 24 + 2 * 2 * 24), (PlainDrafter(), 0)):
        assert benchmark_tables.extra_parameters(Entry(decoder, Way(drafter, True))) == extra


def test_speedup_against_itself_is_one_without_doubt():
    estimate = speed.speedup(PLAIN, PLAIN)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_intervals_cover_the_truth_and_narrow_with_more_batches():
    rng = np.random.default_rng(0)
    covered, widths = 0, {}
    for size in (10, 160):
        for _ in range(100):
            tokens = rng.integers(5, 60, size)
            seconds = tokens / 100 * rng.lognormal(0, 0.3, size)
            estimate = speed.ratio_of_sums(tokens, seconds)
            assert estimate.low < estimate.value < estimate.high
            if size == 160:
                truth = 100 / np.exp(0.3**2 / 2)
                covered += estimate.low <= truth <= estimate.high
            widths.setdefault(size, []).append(estimate.high - estimate.low)
    assert 85 <= covered <= 100
    assert np.mean(widths[160]) < 0.4 * np.mean(widths[10])


def test_every_way_sees_every_prompt_in_order(tiny):
    decoder, prompts = oracles.make_decoder(*tiny), oracles.ragged_prompts(1, 7)
    drafters = (PlainDrafter(), BestFirstDrafter(4, 3), PromptLookup(3, 2))
    ways = [Entry(decoder, Way(drafter, True)) for drafter in drafters]
    seen = []
    request = Request(prompts, 6, Sampling(), seed=0, batch_size=3)
    results = speed.time_ways(ways, request, on_batch=seen.append)
    assert seen == [3, 6, 7]
    expected = oracles.generate(decoder, prompts, PlainDrafter(), max_new_tokens=6, batch_size=3)
    for result in results:
        assert [len(b.completions) for b in result] == [3, 3, 1]
        assert all(b.seconds > 0 for b in result)
        found = [completion.tokens for b in result for completion in b.completions]
        assert found == oracles.tokens_of(expected)


def test_what_is_timed_is_compiled_before(tiny, monkeypatch):
    """Prompts of two buckets: nothing compiles once the batches are run that count."""
    decoder = oracles.make_decoder(*tiny)
    prompts = [[1, 2], [3] * 8, [4] * 9]
    run_batches, counts = decoder.run_batches, []

    def watched(request, way):
        counts.append((len(request.prompts), num_compilations()))
        return run_batches(request, way)

    monkeypatch.setattr(decoder, "run_batches", watched)
    way = Entry(decoder, Way(BestFirstDrafter(3, 2), False))
    speed.time_ways([way], Request(prompts, 5, Sampling(), seed=0, batch_size=2))
    *warm_up, (number, compiled) = counts
    assert (len(warm_up), number) == (2, len(prompts))
    assert compiled == num_compilations() == counts[0][1] + 3  # two prefills and a loop

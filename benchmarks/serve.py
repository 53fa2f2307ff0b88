"""Requests that come at random: the engine, with drafts and without, against batches of `generate`.

    python benchmarks/serve.py --workdir RUN --prompts_file FILE --slots 1,4,16 --rates 1,4,0

Requests come by a Poisson process of so many a second (0: all at once), prompts in turn from the
file, lengths of outputs lognormal and reached by every request: no end of sequence ends one before.
Every way answers the same requests at the same times:

    drafts   the engine, with the drafts of the run by load, see ssjax/serving/sizes.py
    plain    the engine without drafts, with passes of as many rows as it needs
    batches  `Decoder.generate` with the drafts of the run, on what waits when the batch before has
             ended, at most as many as there are slots; each answer is known when its batch ends

What is told: requests and tokens a second from the first arrival to the last end; time to the first
token; time between tokens, that is, from the look before that found new tokens to this one, over
the tokens it found. Compilation is left out.
"""

import copy
import dataclasses
import threading
import time

import numpy as np
from absl import flags

from ssjax.cli import options, start
from ssjax.data import prompt_files
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import PlainDrafter, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.run import Run, load
from ssjax.serving.engine import Engine
from ssjax.serving.extras import Extras
from ssjax.serving.limits import EngineLimits
from ssjax.serving.sizes import make_sizes, row_counts
from ssjax.serving.ticket import Asked, Ticket

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.", required=True)
_PROMPTS = flags.DEFINE_string("prompts_file", None, "Prompts, a line each.", required=True)
_SLOTS = flags.DEFINE_list("slots", "1,4,16", "Requests that run at once.")
_RATES = flags.DEFINE_list("rates", "1,4,0", "Requests a second; 0: all at once.")
_REQUESTS = flags.DEFINE_integer("requests", 64, "Requests of a measurement.", lower_bound=2)
_MEDIAN = flags.DEFINE_integer("median_tokens", 48, "Median length of outputs.", lower_bound=1)
_SIGMA = flags.DEFINE_float("sigma", 0.7, "Of the logarithm of lengths.", lower_bound=0)
_LONGEST = flags.DEFINE_integer("longest_tokens", 192, "Longest output.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps_per_call", 4, "Passes between two looks.", lower_bound=1)
_PREFILL = flags.DEFINE_integer("prefill_tokens", 2048, "Read between two looks.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of arrivals and lengths.")
_JSON = options.define_output("json", "Also write the table to this file.")


@dataclasses.dataclass(frozen=True)
class Load:
    """The requests of a measurement."""

    prompts: list[tuple[int, ...]]
    lengths: list[int]  # of outputs
    arrivals: list[float]  # seconds after the start, rising


@dataclasses.dataclass(frozen=True)
class Found:
    """What became of the requests, seconds after the start."""

    first: list[float]  # when the first token was known
    ended: list[float]
    gaps: list[float]  # between tokens, see above


def make_load(prompts: list[tuple[int, ...]], rate: float) -> Load:
    """Requests by the flags."""
    rng, count = np.random.default_rng(_SEED.value), _REQUESTS.value
    lengths = np.exp(rng.normal(np.log(_MEDIAN.value), _SIGMA.value, count))
    lengths = np.clip(np.round(lengths), 1, _LONGEST.value).astype(int)
    waits = rng.exponential(1 / rate, count) if rate else np.zeros(count)
    chosen = [prompts[i % len(prompts)] for i in range(count)]
    return Load(chosen, lengths.tolist(), np.cumsum(waits).tolist())


class Watch:
    """Notes when tokens of one request become known."""

    def __init__(self):
        self.ticket: Ticket | None = None
        self.seen: list[tuple[float, int]] = []  # time and tokens

    def look(self) -> None:
        """Called from the engine's thread."""
        ticket = self.ticket
        tokens = len(ticket.completion.tokens) if ticket else 0
        if tokens > (self.seen[-1][1] if self.seen else 0):
            self.seen.append((time.monotonic(), tokens))

    def gaps(self) -> list[float]:
        """Seconds for each token after the first look."""
        found = []
        for (before, known), (now, tokens) in zip(self.seen, self.seen[1:], strict=False):
            found += [(now - before) / (tokens - known)] * (tokens - known)
        return found


def by_engine(engine: Engine, load: Load) -> Found:
    """The requests through an engine that has been started."""
    begun, watches = time.monotonic(), []
    for prompt, length, arrival in zip(load.prompts, load.lengths, load.arrivals, strict=True):
        time.sleep(max(begun + arrival - time.monotonic(), 0))
        watch = Watch()
        asked = Asked(prompt, length, Sampling(), seed=0, place=0, eos_ids=())
        watch.ticket = engine.submit(asked, watch.look)
        watches.append(watch)
    while not all(watch.ticket.ended for watch in watches):
        time.sleep(0.005)
    times = [watch.ticket.times for watch in watches]
    return Found(
        first=[each.first_token - begun for each in times],
        ended=[each.ended - begun for each in times],
        gaps=[gap for watch in watches for gap in watch.gaps()],
    )


def by_batches(decoder: Decoder, way: Way, slots: int, load: Load) -> Found:
    """The requests in batches, each of what has come when the one before has ended."""
    begun, done, ended = time.monotonic(), 0, []
    while done < len(load.prompts):
        time.sleep(max(begun + load.arrivals[done] - time.monotonic(), 0))
        now = time.monotonic() - begun
        come = sum(arrival <= now for arrival in load.arrivals)
        stop = min(max(come, done + 1), done + slots)
        decoder.generate(
            Request(load.prompts[done:stop], load.lengths[done:stop], Sampling(), 0, slots), way
        )
        ended += [time.monotonic() - begun] * (stop - done)
        done = stop
    return Found(first=ended, ended=ended, gaps=[])


def compile_batches(decoder: Decoder, way: Way, slots: int, prompts) -> None:
    """Decodes once what `by_batches` may need a program for, and so compiles it."""
    by_bucket = {decoder.bucket(len(prompt)): prompt for prompt in prompts}
    for prompt in by_bucket.values():
        known = set()
        for length in range(1, _LONGEST.value + 1):
            capacity = decoder.capacity(len(prompt), length)
            if capacity not in known:
                known.add(capacity)
                decoder.generate(Request([prompt], length, Sampling(), 0, slots), way)


def summary(load: Load, found: Found) -> dict:
    """The figures of a measurement."""
    seconds = max(found.ended) - load.arrivals[0]
    waits = np.subtract(found.first, load.arrivals)
    figures = {
        "requests_per_second": len(load.prompts) / seconds,
        "tokens_per_second": sum(load.lengths) / seconds,
    }
    for name, values in (("first_token", waits), ("between_tokens", found.gaps)):
        for share in (50, 95, 99):
            value = float(np.percentile(values, share)) if len(values) else None
            figures[f"{name}_p{share}"] = value
    return figures


def measure(run: Run, endless: Decoder, prompts, slots: int, rates: list[float]) -> list[dict]:
    """Rows of the table for one number of slots."""
    drafted = run.way({}, slots)
    plain = Way(PlainDrafter(), drafted.deferred)
    counts = row_counts(slots)
    ways = {
        "drafts": (drafted, make_sizes(drafted, counts, *run.known_ways({}))),
        "plain": (plain, make_sizes(plain, counts, {}, {})),
    }
    limits = EngineLimits(
        num_slots=slots,
        max_waiting=_REQUESTS.value,
        max_prompt_tokens=max(map(len, prompts)),
        max_new_tokens=_LONGEST.value,
        max_eos_ids=1,
        passes_per_round=_STEPS.value,
        prefill_tokens=_PREFILL.value,
    )
    rows = []
    for name, (way, sizes) in ways.items():
        engine = Engine(run.decoder, way, Sampling(), limits, extras=Extras(tuple(sizes)))
        engine.start()
        thread = threading.Thread(target=engine.run)
        thread.start()
        for rate in rates:
            load = make_load(prompts, rate)
            rows.append(row(name, slots, rate, summary(load, by_engine(engine, load))))
        engine.stop()
        thread.join()
    compile_batches(endless, drafted, slots, prompts)
    for rate in rates:
        load = make_load(prompts, rate)
        found = by_batches(endless, drafted, slots, load)
        rows.append(row("batches", slots, rate, summary(load, found)))
    return rows


def row(name: str, slots: int, rate: float, figures: dict) -> dict:
    """A row of the table, which is printed."""
    cells = [f"{name:>8} {slots:5} {rate:6g}"]
    cells += [f"{figures[f'{kind}_per_second']:9.2f}" for kind in ("requests", "tokens")]
    for kind in ("first_token", "between_tokens"):
        values = [figures[f"{kind}_p{share}"] for share in (50, 95, 99)]
        cells += ["        -" if value is None else f"{1e3 * value:9.1f}" for value in values]
    print("".join(cells), flush=True)
    return {"way": name, "slots": slots, "rate": rate} | figures


def main():
    run = load(_WORKDIR.value)
    texts = [each for each in prompt_files.read_file(_PROMPTS.value) if each]
    longest = max(run.config.decode.prompt_buckets)
    encoded = [tuple(run.encode_prompt(text, raw=False)) for text in texts]
    prompts = [prompt for prompt in encoded if len(prompt) <= longest]
    endless = copy.copy(run.decoder)  # the same weights
    endless.eos_ids = (2**31 - 1,)  # that no token has
    head = "".join(f"{name:>9}" for name in ("p50", "p95", "p99"))
    print(f"{'':>21}{'req/s':>9}{'tok/s':>9}  first token, ms: {head} between tokens, ms:{head}")
    rows = []
    for slots in map(int, _SLOTS.value):
        rows += measure(run, endless, prompts, slots, [float(rate) for rate in _RATES.value])
    options.write_json(_JSON.value, rows)


if __name__ == "__main__":
    start.run(main)

"""What is told about requests: per response, and for Prometheus, under the names of vLLM."""

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ssjax.decoding.completion import Completion
from ssjax.serving.engine import Engine
from ssjax.serving.ticket import Ticket

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# As OpenAI calls the ways a completion ends.
FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


def response_metrics(completion: Completion, ticket: Ticket) -> dict:
    """The object `metrics` of a response.

    Args:
      completion: as answered.
      ticket: of its request.
    """
    times = ticket.times
    # A stop string ends an answer before the engine hears of it.
    ended, tokens = times.ended or time.monotonic(), len(completion.tokens)
    generating = max(ended - times.first_token, 0.0) if tokens else 0.0
    return {
        "time_to_first_token_ms": _milliseconds(times.first_token - times.arrived),
        "generation_time_ms": _milliseconds(generating),
        "queue_time_ms": _milliseconds(times.began - times.arrived),
        "mean_itl_ms": _milliseconds(generating / (tokens - 1)) if tokens > 1 else None,
        "tokens_per_second": round(tokens / max(ended - times.began, 1e-6), 3),
        "speculative_decoding": _speculation(completion, ticket.drafted),
    }


def _milliseconds(seconds: float) -> float:
    return round(1000 * max(seconds, 0.0), 3)


def _speculation(completion: Completion, drafted: Sequence[int]) -> dict | None:
    """None without drafts. Draft tokens are those that the tree of a pass has room for.

    Args:
      completion: as answered.
      drafted: that its passes had room for, and perhaps others after them.
    """
    depth = completion.max_depth
    steps, accepted = completion.calls, sum(completion.kept)
    offered = sum(drafted[:steps])
    if not depth or (steps and not offered):
        return None
    return {
        "mean_acceptance_length": 1 + accepted / steps if steps else None,
        "draft_acceptance_rate": accepted / offered if offered else None,
        "acceptance_histogram": [completion.kept.count(kept) for kept in range(depth + 1)],
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": offered,
        "num_spec_tokens": depth,
    }


class Figures:
    """What /metrics tells of an engine."""

    def __init__(self, engine: Engine, model_name: str):
        self._engine = engine
        self._labels = {"model_name": model_name, "engine": "0"}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        histograms = {
            "time_to_first_token_seconds": "From arrival to the first token.",
            "inter_token_latency_seconds": "Mean time between tokens of a request.",
            "request_queue_time_seconds": "From arrival to a slot.",
            "e2e_request_latency_seconds": "From arrival to the end.",
        }
        self._histograms = {
            name: Histogram(
                f"vllm:{name}", text, list(self._labels), buckets=_SECONDS, registry=self._registry
            ).labels(*self._labels.values())
            for name, text in histograms.items()
        }

    def observe(self, ticket: Ticket, completion: Completion) -> None:
        """Counts a request that has ended so."""
        times, tokens = ticket.times, len(completion.tokens)
        found = {"e2e_request_latency_seconds": times.ended - times.arrived}
        if times.began:
            found["request_queue_time_seconds"] = times.began - times.arrived
        if tokens:
            found["time_to_first_token_seconds"] = times.first_token - times.arrived
        if tokens > 1:
            passed = times.ended - times.first_token
            found["inter_token_latency_seconds"] = passed / (tokens - 1)
        for name, seconds in found.items():
            self._histograms[name].observe(seconds)

    def text(self) -> bytes:
        """In the form that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        engine, totals = self._engine, self._engine.totals
        for name, value in (
            ("num_requests_running", engine.num_running),
            ("num_requests_waiting", engine.num_waiting),
        ):
            yield self._family(GaugeMetricFamily, name, [({}, value)])
        # Ours: vLLM's engines draft as much at every load.
        for name, value in (
            ("draft_nodes", engine.size.num_draft_nodes),
            ("rows", engine.size.rows),
        ):
            yield self._family(GaugeMetricFamily, f"ssjax:{name}_per_pass", [({}, value)])
        counters = {
            "prompt_tokens": [({}, totals.prompt_tokens)],
            "generation_tokens": [({}, totals.new_tokens)],
            "request_success": [
                ({"finished_reason": reason}, count)
                for reason, count in _by_reason(totals.finished)
            ],
        }
        if engine.prefixes is not None:
            counters["prefix_cache_queries"] = [({}, engine.prefixes.queries)]
            counters["prefix_cache_hits"] = [({}, engine.prefixes.hits)]
        if engine.max_depth:
            counters |= {
                "spec_decode_num_drafts": [({}, totals.passes)],
                "spec_decode_num_draft_tokens": [({}, totals.draft_nodes)],
                "spec_decode_num_accepted_tokens": [({}, sum(totals.kept_by_depth))],
                "spec_decode_num_accepted_tokens_per_pos": [
                    ({"position": str(depth)}, count)
                    for depth, count in enumerate(totals.kept_by_depth)
                ],
            }
        for name, samples in counters.items():
            yield self._family(CounterMetricFamily, name, samples)

    def _family(self, kind, name, samples) -> Metric:
        more = list(samples[0][0]) if samples else []
        full = name if ":" in name else f"vllm:{name}"
        family = kind(full, name.replace("_", " "), labels=[*self._labels, *more])
        for labels, value in samples:
            family.add_metric([*self._labels.values(), *labels.values()], value)
        return family


def _by_reason(finished) -> Iterator[tuple[str, int]]:
    """Ends by the names of OpenAI, those of one name added up."""
    found: dict[str, int] = {}
    for finish, count in list(finished.items()):
        name = FINISH_REASONS.get(finish, "abort")
        found[name] = found.get(name, 0) + count
    yield from found.items()

"""The parts of a benchmark: entries from the command line, what is reported of each, the table."""

import ast
import dataclasses
import statistics
from collections.abc import Sequence

import jax

from ssjax.data.pipeline import Example
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import same_tokens
from ssjax.decoding.draft_model import ModelDrafter
from ssjax.errors import UserError
from ssjax.evaluation import speed
from ssjax.evaluation.comparison import measurement_of
from ssjax.evaluation.markdown import table
from ssjax.evaluation.speed import Entry, TimedBatch
from ssjax.metrics.quality import LABELS, cell, score, shown_metrics
from ssjax.models.lora import is_lora
from ssjax.models.parameters import count, flatten
from ssjax.run import Run, load


def open_entry(run: Run, name: str) -> Entry:
    """A drafter of the command line.

    Raises:
      UserError: not of the form above, or the run cannot draft so.
    """
    head, *pairs = name.split(":")
    kind, _, directory = head.partition("@")
    changes = {"drafter": kind}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--drafters: {pair!r} in {name!r} must be KEY=VALUE")
        changes[key] = _value(text)
    if kind == "draft_model":
        changes["draft_model"] = directory
    elif directory:
        other = load(directory, mesh=run.decoder.mesh, int8=run.decoder.int8)
        if not same_tokens(other.tokenizer, run.tokenizer):
            raise UserError(f"--drafters: {directory} has another tokenizer than {run.workdir}")
        run = other
    return Entry(run.decoder, run.way(changes, 1))


def _value(text):
    try:
        return ast.literal_eval(text.replace("/", ","))
    except (ValueError, SyntaxError):
        return text


def describe(entry: Entry, plain: list[TimedBatch], own: list[TimedBatch]) -> dict:
    """What is reported of one way, as plain values."""
    ours, theirs = measurement_of(own), measurement_of(plain)
    pairs = zip(theirs.completions, ours.completions, strict=True)
    reduction = theirs.calls / max(ours.calls, 1)
    decode_speedup = theirs.decode_seconds / max(ours.decode_seconds, 1e-9)
    return {
        "identical": sum(a.tokens == b.tokens for a, b in pairs),
        "tokens": ours.num_tokens,
        "calls": ours.calls,
        "tokens_per_call": ours.tokens_per_call,
        "call_reduction": reduction,
        "acceptance_by_depth": ours.acceptance_by_depth,
        "first_token_ms": 1e3 * statistics.median(batch.timing.prefill for batch in own),
        "tokens_per_second": dataclasses.asdict(speed.tokens_per_second(own)),
        "speedup": dataclasses.asdict(speed.speedup(plain, own)),
        "decode_speedup": decode_speedup,
        "step_cost": reduction / decode_speedup,
        "pass_ms": 1e3 * ours.decode_seconds / max(sum(batch.passes for batch in own), 1),
        "draft_nodes": entry.way.drafter.num_nodes - 1,
        "extra_parameters": extra_parameters(entry),
        "peak_bytes": _peak_bytes(),
    }


def extra_parameters(entry: Entry) -> int:
    """Parameters that plain decoding of the same model would not need."""
    drafter = entry.way.drafter
    if isinstance(drafter, ModelDrafter):
        return count(entry.way.drafter_params)
    used = {
        "stream_embedding": drafter.num_streams,
        "stream_init": drafter.num_streams,
        "stream_root": drafter.num_streams,
        "parent": drafter.num_streams or drafter.num_heads,
        "exit": drafter.kept_nodes or drafter.exit_threshold,
        "medusa": drafter.num_heads,
    }
    total = 0
    for name, leaf in flatten(entry.decoder.params).items():
        adapter = is_lora(tuple(name.split("/"))) and drafter.num_streams
        if adapter or any(name.startswith(start) and needed for start, needed in used.items()):
            total += leaf.size
    return total


def _peak_bytes() -> int | None:
    """The most memory that this process has held on the device; None where it is not counted."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def quality(run: Run, batches: list[TimedBatch], examples: Sequence[Example]) -> dict:
    """The outputs by the metrics of the run's task, see `score`."""
    completions = [c for batch in batches for c in batch.completions]
    return score(run.task.metrics, [run.finish(c, ())[1] for c in completions], examples)


_COLUMNS = {
    "tokens per call": lambda row: f"{row['tokens_per_call']:.2f}",
    "call reduction": lambda row: f"{row['call_reduction']:.2f}",
    "acceptance by depth": lambda row: " ".join(f"{x:.2f}" for x in row["acceptance_by_depth"]),
    "pass, ms": lambda row: f"{row['pass_ms']:.2f}",
    "first token, ms": lambda row: f"{row['first_token_ms']:.1f}",
    "tokens per second": lambda row: "{value:,.0f} ({low:,.0f}-{high:,.0f})".format(
        **row["tokens_per_second"]
    ),
    "speedup": lambda row: "{value:.2f} ({low:.2f}-{high:.2f})".format(**row["speedup"]),
    "step cost": lambda row: f"{row['step_cost']:.2f}",
    "extra parameters": lambda row: f"{row['extra_parameters']:,}",
}


def markdown(result: dict) -> str:
    """The table as Markdown; its last column is the main metric of the task."""
    metric = shown_metrics(get_task(result["task"]).metrics)[0]
    heads = ["batch size", "drafter", "draft nodes", "as plain", *_COLUMNS, LABELS[metric]]
    title = (
        f"{result['source']}: {result['prompts']} prompts, at most {result['max_new_tokens']} new "
        f"tokens, temperature {result['temperature']:g}, {result['parameters']:,} parameters, "
        f"{result['dtype']}, {result['device']}"
    )
    rows = []
    for row in result["rows"]:
        same = f"{row['identical']} of {result['prompts']}"
        cells = [str(row["batch_size"]), row["drafter"], str(row["draft_nodes"]), same]
        cells += [form(row) for form in _COLUMNS.values()]
        rows.append([*cells, cell(row, metric, with_interval=True)])
    return f"{title}.\n\n{table(heads, rows)}\n"

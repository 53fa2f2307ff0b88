"""The evaluation of a run: measured, as plain values, and as a table on the terminal."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssjax.decoding.acceptance import RULES
from ssjax.decoding.request import make_request
from ssjax.errors import UserError
from ssjax.evaluation.comparison import Comparison, Measurement, compare
from ssjax.evaluation.prompts import examples_of, metrics_of
from ssjax.evaluation.speed import Kept
from ssjax.metrics.quality import LABELS, cell, require_packages, score, shown_metrics
from ssjax.parallel.accelerators import device_line
from ssjax.run import Run


def evaluate(
    run: Run,
    split: str,
    max_records: int,
    *,
    calibration: bool = True,
    keep: Callable[[dict], Kept] | None = None,
    **changes,
) -> dict:
    """Decodes a split plainly and speculatively and compares.

    Args:
      run: an opened run.
      split: "train", "validation" or "test".
      max_records: 0 for all.
      calibration: whether a calibration of the run says how to draft; see `Run.way`.
      keep: makes, from what decides the answers, the place that has those of an evaluation that
        was stopped.
      **changes: fields of `DecodeConfig` to use in place of the run's.

    Returns:
      Plain values: settings, `Comparison.summary`, the task's metrics of both, one example.
    """
    metrics = metrics_of(run)
    require_packages(metrics)
    decode = run.decode_config(**changes)
    examples = examples_of(run, split, max_records)
    if not examples:
        raise UserError(f"split {split!r} has no records")
    way = run.way(changes, decode.batch_size, calibration=calibration)
    prompts = [example.prompt_ids for example in examples]
    comparison = compare(
        run.decoder,
        make_request(decode, prompts),
        way,
        on_batch=_progress(len(examples)),
        kept=keep and keep(_about(run, split, decode, way, prompts)),
    )
    plain, plain_texts = _finished(run, comparison.plain, decode.stop)
    fast, fast_texts = _finished(run, comparison.speculative, decode.stop)
    summary = Comparison(plain, fast).summary()
    quality = score(metrics, plain_texts, examples)
    summary["plain"] |= quality
    same = fast_texts == plain_texts
    summary["speculative"] |= quality if same else score(metrics, fast_texts, examples)
    return {
        "workdir": str(run.workdir),
        "step": run.step,
        "task": run.task.name,
        "split": split,
        "device": jax.devices()[0].device_kind,
        "dtype": run.dtype,
        "batch_size": decode.batch_size,
        "temperature": decode.temperature,
        "max_new_tokens": decode.max_new_tokens,
        "drafter": type(way.drafter).__name__,
        "draft_nodes": way.drafter.num_nodes - 1,
        "streams": way.drafter.num_streams,
        "deferred": way.deferred,
        "acceptance": RULES[decode.accept],
        **summary,
        "metrics": list(metrics),
        "example": {
            "prompt": examples[0].prompt,
            "reference": examples[0].references[0],
            "output": fast_texts[0],
            "runs": run.mark_runs(fast.completions[0], fast_texts[0]),
        },
    }


def _about(run, split, decode, way, prompts) -> dict:
    """What decides the answers, and on what they are timed."""
    ids = "\n".join(" ".join(map(str, prompt)) for prompt in prompts)
    return {
        "step": run.step,
        "split": split,
        "prompts": hashlib.sha256(ids.encode()).hexdigest(),
        "decode": dataclasses.asdict(decode),
        "drafter": repr(way.drafter),
        "deferred": way.deferred,
        "dtype": run.dtype,
        "devices": device_line(jax.devices()),
    }


def _finished(run: Run, measured: Measurement, stops: Sequence[str]):
    """The measurement cut at stop strings, and the texts.

    Tokens and passes after a stop string do not count; the seconds that they took are left in.
    """
    pairs = [run.finish(completion, stops) for completion in measured.completions]
    completions = tuple(completion for completion, _ in pairs)
    return dataclasses.replace(measured, completions=completions), [text for _, text in pairs]


def show(evaluation: dict) -> None:
    """Prints an evaluation to stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(
        f"\n{evaluation['task']} {evaluation['split']}: {evaluation['prompts']} prompts, "
        f"step {evaluation['step']}, {evaluation['device']}, {evaluation['dtype']}, "
        f"batch size {evaluation['batch_size']}, {evaluation['streams']} streams, "
        f"{evaluation['draft_nodes']} draft nodes, acceptance {evaluation['acceptance']}"
    )
    table = Table()
    table.add_column("")
    for name in ("plain", "speculative"):
        table.add_column(name, justify="right")
    plain, fast = evaluation["plain"], evaluation["speculative"]
    identical = f"{evaluation['identical']} of {evaluation['prompts']}"
    table.add_row("identical outputs", "", identical)
    table.add_row("tokens", f"{plain['tokens']:,}", f"{fast['tokens']:,}")
    table.add_row("decode passes", f"{plain['calls']:,}", f"{fast['calls']:,}")
    table.add_row("call reduction", "", f"{evaluation['call_reduction']:.2f}x")
    for key, name, form in (
        ("tokens_per_call", "tokens per call", ".2f"),
        ("milliseconds_per_call", "milliseconds per pass", ".2f"),
        ("tokens_per_second", "tokens per second", ",.0f"),
    ):
        table.add_row(name, f"{plain[key]:{form}}", f"{fast[key]:{form}}")
    table.add_row("speedup", "", f"{evaluation['speedup']:.2f}x")
    for name in shown_metrics(evaluation["metrics"]):
        table.add_row(LABELS[name], cell(plain, name), cell(fast, name))
    console.print(table)
    depths = " ".join(f"{share:.2f}" for share in fast["acceptance_by_depth"])
    console.print(f"acceptance by depth: {depths or 'no drafts'}")
    example = evaluation["example"]
    console.print("\nOne example; brackets hold what one pass emitted.")
    for name in ("prompt", "reference", "runs"):
        console.print(Text(f"{name}: {example[name]}"), soft_wrap=True)


def _progress(total):
    """Plain lines at each quarter, to stderr."""
    quarters = {max(1, total * part // 4) for part in range(1, 5)}
    last = 0

    def on_batch(done):
        nonlocal last
        if any(last < quarter <= done for quarter in quarters):
            print(f"evaluating: {done} of {total} prompts", file=sys.stderr, flush=True)
        last = done

    return on_batch

"""Finds the fastest way to decode a run on this device, and keeps it beside the run.

    python -m ssjax.calibrate --workdir RUN
    python -m ssjax.calibrate --workdir RUN --batch_sizes 1,4,16 --nodes 4,16,64 --plot PICTURE.png

Decodes validation prompts plainly, replays the outputs to see what every candidate tree would
have had accepted, times a pass of each in both execution orders, and chooses by tokens per
second; plain decoding is a candidate and stays where no draft beats it by more than 3 %. The
choice is written to calibration.json in the run directory. `generate`, `evaluate` and
`Run.generate` follow it unless told how to draft, or --nocalibration.
"""

import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from ssjax import messages
from ssjax.cli import options, start
from ssjax.data import builders, pipeline
from ssjax.decoding.drafters import StaticDrafter
from ssjax.errors import UserError
from ssjax.evaluation import best_way, pictures
from ssjax.evaluation.best_way import (
    Acceptance,
    Calibration,
    calibrate,
    measure_acceptance,
    require_streams,
)
from ssjax.files.writing import write_atomic
from ssjax.run import Run

_MODEL = options.define_model_flags()
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", "1,4", "Prompts decoded together.")
_NUM_PROMPTS = options.define_count("num_prompts", 50, "Prompts, at most.")
_NODES = flags.DEFINE_list("nodes", "2,4,8,16,32", "Draft nodes per pass, the root not counted.")
_JSON = options.define_output("json", "Also write the result to this file.")
_PLOT = options.define_output("plot", "Also draw it to this PNG file; needs matplotlib.")

_SHOWN_RANKS = 4


def main() -> int:
    """Calibrates the run of the command line; returns the exit code."""
    batch_sizes, node_counts = options.counts(_BATCH_SIZES), options.counts(_NODES)
    if _PLOT.value:
        if not _PLOT.value.endswith(".png"):
            raise UserError(f"--plot={_PLOT.value} must end in .png; no other form is drawn")
        pictures.require_matplotlib()
    run = _MODEL.open()
    require_streams(run.decoder.model, _MODEL.workdir)
    prompts = read_prompts(run, _NUM_PROMPTS.value)
    max_new_tokens = run.config.decode.max_new_tokens
    messages.say(f"decoding {len(prompts)} validation prompts and replaying them")
    acceptance = measure_acceptance(
        run.decoder, prompts, node_counts=node_counts, max_new_tokens=max_new_tokens
    )
    calibrations = []
    for batch_size in batch_sizes:
        messages.say(f"timing passes at batch size {batch_size}; each kind compiles once")
        calibrations.append(
            calibrate(
                run.decoder,
                acceptance,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                on_compiled=_say_compiled,
            )
        )
    entries = [best_way.entry_of(run.situation, acceptance, each) for each in calibrations]
    path = best_way.store(run.workdir, entries)
    options.write_json(_JSON.value, {"calibrations": entries})
    if _PLOT.value:
        title = f"{run.task.name}, step {run.step}, {run.situation.device}, {run.situation.dtype}"
        picture = pictures.of_calibration(acceptance, calibrations, title)
        write_atomic(_PLOT.value, picture)
    show(run, acceptance, calibrations)
    print(f"kept in {path}")
    return 0


def _say_compiled(number: int) -> None:
    if number % 10 == 0:
        messages.say(f"compiled {number}")


def read_prompts(run: Run, limit: int) -> list[tuple[int, ...]]:
    """Ids of the first validation prompts of the run's task."""
    data = run.config.data
    source = builders.open_source(
        data.task, data.path, data.prepared_dir, run.config.seed, "validation"
    )
    examples = pipeline.decode_examples(
        source, run.task, run.tokenizer, data.max_prompt_length, limit
    )
    if not examples:
        raise UserError("the validation split has no records to calibrate on")
    return [example.prompt_ids for example in examples]


def show(run: Run, acceptance: Acceptance, calibrations: list[Calibration]) -> None:
    """Prints a calibration to stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(
        f"\n{run.task.name} validation: {acceptance.num_prompts} prompts, median "
        f"{acceptance.prompt_length} tokens, step {run.step}, {run.situation.device}, "
        f"{run.situation.dtype}"
    )
    table = Table(title="acceptance by stream and rank", title_justify="left")
    table.add_column("stream")
    ranks = min(_SHOWN_RANKS, acceptance.table.shape[1])
    for rank in range(1, ranks + 1):
        table.add_column(f"rank {rank}", justify="right")
    for stream, shares in enumerate(acceptance.table, start=1):
        table.add_row(str(stream), *(f"{share:.3f}" for share in shares[:ranks]))
    console.print(table)
    for calibration in calibrations:
        console.print(_candidate_table(calibration))
        # The line may be long, and a file that it is piped into wants one line.
        console.print(f"chosen: {best_way.summary(calibration)}", soft_wrap=True)


def _candidate_table(calibration: Calibration) -> Table:
    table = Table(title=f"batch size {calibration.batch_size}", title_justify="left")
    for name in ("tree", "draft nodes", "streams", "order"):
        table.add_column(name)
    for name in ("tokens per call", "ms per pass", "tokens per second", "to plain"):
        table.add_column(name, justify="right")
    plain = calibration.plain.tokens_per_second
    for candidate in calibration.candidates:
        drafter = candidate.way.drafter
        kind = "static" if isinstance(drafter, StaticDrafter) else "best-first"
        order = "deferred" if candidate.way.deferred else "beside"
        what = ("plain", "", "", "")
        if not candidate.is_plain:
            what = (kind, str(drafter.num_nodes - 1), str(drafter.num_streams), order)
        table.add_row(
            *what,
            f"{candidate.tokens_per_call:.2f}",
            f"{1e3 * candidate.seconds_per_pass:.2f}",
            f"{candidate.tokens_per_second:,.0f}",
            f"{candidate.tokens_per_second / plain:.2f}",
            style="bold" if candidate is calibration.chosen else "",
        )
    return table


if __name__ == "__main__":
    start.run(main)

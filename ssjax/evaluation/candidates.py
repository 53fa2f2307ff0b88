"""A calibration on the terminal: what is accepted, and every candidate with its speed."""

import itertools
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ssjax.decoding.drafters import StaticDrafter
from ssjax.evaluation import best_way
from ssjax.evaluation.best_way import Acceptance, Calibration
from ssjax.evaluation.reliability import EDGES, Bin, Chances
from ssjax.run import Run

_SHOWN_RANKS = 4


def show(run: Run, acceptance: Acceptance, calibrations: Sequence[Calibration]) -> None:
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
    console.print(_chance_table(acceptance.chances))
    for calibration in calibrations:
        show_one(calibration)


def show_one(calibration: Calibration) -> None:
    """Prints the candidates of one batch size, and the line about the chosen one."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(_candidate_table(calibration))
    # The line may be long, and a file that it is piped into wants one line.
    console.print(f"chosen: {best_way.summary(calibration)}", soft_wrap=True)


def _chance_table(chances: Chances) -> Table:
    said = ", ".join(f"{each:.2f}" for each in chances.temperatures)
    which = "used" if chances.used else "not used: other prompts gain nothing"
    table = Table(
        title=f"chances of draft nodes; temperatures by stream {said} ({which})",
        title_justify="left",
        caption=f"mean error {chances.plain.error:.3f}, fitted {chances.fitted.error:.3f}; on "
        "prompts that were not fitted to",
        caption_justify="left",
    )
    table.add_column("chance")
    for name in ("nodes", "predicted", "kept", "nodes, fitted", "predicted", "kept"):
        table.add_column(name, justify="right")
    both = [{each.low: each for each in r.bins} for r in (chances.plain, chances.fitted)]
    for low, high in itertools.pairwise(EDGES):
        cells = []
        for bins in both:
            own = bins.get(low)
            cells += (
                [f"{own.nodes:,}", f"{own.predicted:.3f}", f"{own.kept:.3f}"] if own else [""] * 3
            )
        if any(cells):
            table.add_row(f"{low:g} to {high:g}", *cells)
    return table


def _cells(own: Bin | None) -> list[str]:
    return [f"{own.nodes:,}", f"{own.predicted:.3f}", f"{own.kept:.3f}"] if own else [""] * 3


def _candidate_table(calibration: Calibration) -> Table:
    table = Table(title=f"batch size {calibration.batch_size}", title_justify="left")
    for name in ("tree", "draft nodes", "least chance", "streams", "order"):
        table.add_column(name)
    for name in ("tokens per call", "ms per pass", "tokens per second", "to plain"):
        table.add_column(name, justify="right")
    plain = calibration.plain.tokens_per_second
    for candidate in calibration.candidates:
        drafter = candidate.way.drafter
        kind = "static" if isinstance(drafter, StaticDrafter) else "best-first"
        order = "deferred" if candidate.way.deferred else "beside"
        what = ("plain", "", "", "", "")
        if not candidate.is_plain:
            least = f"{drafter.min_node_chance:g}" if drafter.min_node_chance else ""
            what = (kind, str(drafter.num_nodes - 1), least, str(drafter.num_streams), order)
        table.add_row(
            *what,
            f"{candidate.tokens_per_call:.2f}",
            f"{1e3 * candidate.seconds_per_pass:.2f}",
            f"{candidate.tokens_per_second:,.0f}",
            f"{candidate.tokens_per_second / plain:.2f}",
            style="bold" if candidate is calibration.chosen else "",
        )
    return table

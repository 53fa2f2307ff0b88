"""The report of a study: tables and pictures from the JSON files that its steps left.

`write` makes FILE.md and, in a directory of its name, the JSON files that its numbers come from and
the pictures. A step that has not run yet is "not measured". What a reader should make of it is
written by hand in FILE/reading.md, which the report begins with if it is there.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssjax.errors import DamagedError
from ssjax.files.reading import parse_json_object, read_json_object, read_lines
from ssjax.files.writing import make_directory, write_atomic
from ssjax.study import suites
from ssjax.study.suites import TaskStudy
from ssjax.study.tables import (
    MODES,
    NOT_MEASURED,
    budget_curves,
    rows_of,
    short_name,
    side_by_side,
    task_sections,
)

_AGAIN = "remove it and run the same command again"


def write(target: Path, root: Path, suite: Sequence[TaskStudy], name: str) -> None:
    """Writes the report of whatever is done.

    Args:
      target: Markdown file.
      root: work directory of `ssjax.reproduce`.
      suite: all of its tasks.
      name: of the suite.

    Raises:
      UserError: a result cannot be read, or the report not be written.
    """
    kept = make_directory(target.with_suffix(""))
    with _damaged(root):
        sections = _sections(target, kept, root, suite, name)
    write_atomic(target, "\n\n".join(section for section in sections if section) + "\n")


def _sections(target, kept, root, suite, name) -> list[str]:
    sections = [_read_text(kept / "reading.md"), _how(root, suite, name)]
    measured = {task.task: read_results(root / task.task) for task in suite}
    sections += [
        "## Side by side with the paper",
        "Speedup / call reduction / metric (ROUGE-1; SQL: exact match). The paper's rows are table "
        "1 of arXiv:2402.11131v1: models hundreds of times as large, pretrained, on an A100. Ours "
        "are small models from random weights on the machine above: Medusa heads on the frozen "
        "base, streams in the shared mode, both with the draft nodes that stand in brackets.",
        side_by_side(suite, measured),
    ]
    for task in suite:
        results = measured[task.task]
        _keep(root / task.task, kept / task.task, results)
        sections += [f"## {task.task}", *task_sections(task, results)]
        pictures = _pictures(task, root / task.task, results)
        for picture, content in pictures.items():
            path = kept / task.task / f"{picture}.png"
            write_atomic(path, content)
            sections.append(f"![{picture}]({path.relative_to(target.parent)})")
    return sections


@contextlib.contextmanager
def _damaged(root: Path) -> Iterator[None]:
    """A result that is JSON but not what its step writes."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(
            f"{root}: a JSON file there is not what its step wrote ({error!r}); remove it and run "
            "the same command again"
        ) from error


def read_results(directory: Path) -> dict[str, Any]:
    """The JSON results of a task by the names of their steps."""
    return {path.stem: read_json_object(path, _AGAIN) for path in sorted(directory.glob("*.json"))}


def _keep(source: Path, target: Path, results: Mapping[str, Any]) -> None:
    """Copies what the report's numbers come from, without the example texts of trainings.

    The work directory becomes DIR, so that a copy tells nothing of the machine.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in results:
        if not name.startswith("train-"):
            text = (source / f"{name}.json").read_text()
            write_atomic(target / f"{name}.json", text.replace(str(source.parent), "DIR"))
    for metrics in source.glob("*/metrics.jsonl"):
        shutil.copyfile(metrics, target / f"metrics-{metrics.parent.name}.jsonl")


def _read_text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _how(root: Path, suite: Sequence[TaskStudy], name: str) -> str:
    noted = {}
    for task in suite:
        steps = read_results(root / task.task).get("steps", {})
        noted |= {f"{task.task}/{step}": value for step, value in steps.items()}
    hours = sum(value["seconds"] for value in noted.values()) / 3600
    commits = sorted({value["commit"] for value in noted.values() if value["commit"]})
    machines = sorted({value["machine"] for value in noted.values()})
    return (
        f"# Results of the suite `{name}`\n\n"
        f"`python -m ssjax.reproduce --suite {name} --data_path DATA --workdir DIR`: "
        f"{len(noted)} steps, {hours:.1f} hours, on {'; '.join(machines) or NOT_MEASURED}, commit "
        f"{', '.join(commits) or 'unknown'}. float32, greedy, batch size 1, compilation excluded, "
        "all ways to decode in turn on the same prompts. Every number is in a JSON file of the "
        "directory named like this page; `steps.json` has command and seconds of each step."
    )


def _pictures(task: TaskStudy, directory: Path, results: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> PNG: tokens per call by nodes, acceptance by depth, losses."""
    pictures = {}
    curves = budget_curves(task, results)
    if curves:
        lines = {name: sorted(curve.items()) for name, curve in curves.items()}
        pictures["tokens-per-call"] = _lines(lines, "draft nodes", "tokens per call")
    depths = {}
    for model in MODES:
        for row in rows_of(results, f"benchmark-{model}"):
            if f"num_nodes={task.compared_nodes}" in row["drafter"]:
                kind = short_name(row["drafter"]).partition(":")[0]
                shares = row["acceptance_by_depth"]
                depths.setdefault(f"{model}: {kind}", list(enumerate(shares, start=1)))
    if depths:
        pictures["acceptance"] = _lines(depths, "depth", "passes that kept a node there")
    losses = {}
    for training in suites.models(task):
        path = directory / training.name / "metrics.jsonl"
        if path.exists():
            records = [parse_json_object(line, str(path), _AGAIN) for line in read_lines(path)]
            points = [(r["step"], r["loss_main"]) for r in records if "loss_main" in r]
            if points:
                losses[training.name] = points
    if losses:
        pictures["losses"] = _lines(losses, "step", "training loss of the main stream")
    return pictures


def _lines(lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name, markersize=3)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()

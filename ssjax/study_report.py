"""The report of a study: tables and pictures from the JSON files that its steps left.

`write` makes FILE.md and, in a directory of its name, the JSON files that its numbers come from and
the pictures. A step that has not run yet is "not measured". What a reader should make of it is
written by hand in FILE/reading.md, which the report begins with if it is there.
"""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssjax import markdown, study
from ssjax.evaluation.quality import LABELS, shown_metrics
from ssjax.files import write_atomic
from ssjax.study import TaskStudy

NOT_MEASURED = "not measured"

_PAPER = {  # table 1 of arXiv:2402.11131v1; speedup / call reduction / metric
    "sql_context": (
        ("OPT-1.3b", "2.07 / 2.79 / 84.98", "2.39 / 3.57 / 87.40", "84.98"),
        ("Phi-1.3b", "2.58 / 3.25 / 88.71", "2.62 / 3.53 / 89.90", "88.71"),
        ("OpenLLaMA-7b", "3.20 / 4.10 / 90.11", "3.14 / 4.13 / 91.70", "89.88"),
    ),
    "dialogsum": (
        ("OPT-1.3b", "1.56 / 1.91 / 43.40", "1.94 / 2.62 / 44.07", "43.40"),
        ("Phi-1.3b", "1.89 / 2.28 / 43.57", "1.83 / 2.34 / 43.36", "43.57"),
        ("OpenLLaMA-7b", "1.76 / 2.25 / 44.20", "1.87 / 2.51 / 43.92", "44.20"),
    ),
    "e2e_nlg": (
        ("OPT-1.3b", "2.13 / 2.95 / 69.48", "2.45 / 3.72 / 69.32", "69.48"),
        ("Phi-1.3b", "2.78 / 3.35 / 67.90", "2.84 / 3.69 / 67.40", "67.90"),
        ("OpenLLaMA-7b", "2.70 / 3.22 / 69.50", "2.96 / 3.55 / 68.66", "69.50"),
    ),
}

_MODES = {
    "lossless": "the base model, frozen",
    "shared": "fine-tuned with LoRA and streams: a new model",
}


def write(target: Path, root: Path, suite: Sequence[TaskStudy], name: str) -> None:
    """Writes the report of whatever is done.

    Args:
      target: Markdown file.
      root: work directory of `ssjax.reproduce`.
      suite: all of its tasks.
      name: of the suite.
    """
    kept = target.with_suffix("")
    kept.mkdir(parents=True, exist_ok=True)
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
    write_atomic(target, "\n\n".join(section for section in sections if section) + "\n")


def read_results(directory: Path) -> dict[str, Any]:
    """The JSON results of a task by the names of their steps."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}


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


def task_sections(task: TaskStudy, results: Mapping[str, Any]) -> list[str]:
    """The tables of a task."""
    sections = ["### Models", models_table(task, results)]
    sections += ["### Quality, plain decoding", quality_table(task, results)]
    for model, about in _MODES.items():
        rows = rows_of(results, f"benchmark-{model}")
        chosen = [row for row in rows if _compared(task, row)]
        sections += [f"### Ways to decode `{model}`: {about}", drafters_table(chosen)]
        sections += [_certificate(results.get(f"verify-{model}"))]
    sections += ["### Tokens per call by draft nodes", budget_table(task, results)]
    sections += ["### The paper's trees, pruned and not", pruning_table(results)]
    if task.ablation_steps:
        sections += [
            f"### Ablations of `shared`, {task.ablation_steps} steps each, "
            f"{task.compared_nodes} draft nodes",
            ablations_table(task, results),
        ]
    return sections


def rows_of(results: Mapping[str, Any], name: str) -> list[dict]:
    """Rows of a benchmark by their names on the command line; [] if it has not run."""
    return results[name]["rows"] if name in results else []


def _compared(task: TaskStudy, row: dict) -> bool:
    """Whether a row belongs into the table of drafters, at about the same number of nodes."""
    name = row["drafter"]
    if "static" in name:
        return False
    one_of_several = f"num_nodes={task.compared_nodes}" in name or name.startswith("draft_model")
    return one_of_several or name in ("plain", "calibrated") or name.startswith("prompt_lookup")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, or that nothing was measured."""
    return markdown.table(heads, rows) if rows else f"{NOT_MEASURED}."


def side_by_side(suite: Sequence[TaskStudy], measured: Mapping[str, Any]) -> str:
    """Our models between those of the paper, task by task."""
    rows = []
    for task in suite:
        results = measured[task.task]
        finetune = rows_of(results, "benchmark-finetune")
        parameters = results.get("benchmark-shared", {}).get("parameters")
        model = f"ours, {parameters / 1e6:.1f}M" if parameters else "ours"
        rows += [
            [
                task.task,
                f"**{model}** ({task.compared_nodes})",
                _cell(task, rows_of(results, "benchmark-lossless"), "medusa"),
                _cell(task, rows_of(results, "benchmark-shared"), "streams"),
                f"{finetune[0][_metric(finetune[0])]:.2f}" if finetune else NOT_MEASURED,
            ],
            *(["", *published] for published in _PAPER[task.task]),
        ]
    heads = ["task", "model", "Medusa", "Speculative Streaming", "plain fine-tune"]
    return table(heads, rows)


def _cell(task: TaskStudy, rows: Sequence[dict], kind: str) -> str:
    """Speedup / call reduction / metric of a drafter with the number of nodes that is compared."""
    for row in rows:
        if _short(row["drafter"]) == f"{kind}:num_nodes={task.compared_nodes}":
            speedup, metric = row["speedup"]["value"], row[_metric(row)]
            return f"{speedup:.2f} / {row['call_reduction']:.2f} / {metric:.2f}"
    return NOT_MEASURED


def models_table(task: TaskStudy, results: Mapping[str, Any]) -> str:
    """Parameters, time of training and most tokens per call of every model."""
    heads = ["model", "parameters", "steps", "minutes", "tokens per call"]
    rows = []
    steps = results.get("steps", {})
    for training in study.models(task):
        name = training.name
        seconds = steps.get(f"train-{name}", {}).get("seconds")
        if seconds is None:
            continue
        target = {"base": "lossless", "medusa": "lossless"}.get(name, name)
        benchmark = results.get(f"benchmark-{target}")
        own = [r for r in rows_of(results, f"benchmark-{name}") if _compared(task, r)]
        fastest = max((r["tokens_per_call"] for r in own), default=None)
        rows.append(
            [
                f"`{name}`",
                f"{benchmark['parameters']:,}" if benchmark else "-",
                str(training.steps),
                f"{seconds / 60:.1f}",
                f"{fastest:.2f}" if fastest else "-",
            ]
        )
    return table(heads, rows)


def quality_table(task: TaskStudy, results: Mapping[str, Any]) -> str:
    """All metrics of the task, with 95% intervals, of the models that decode as targets."""
    metrics = shown_metrics(task.task)
    targets = {"base, lossless": "lossless", "finetune": "finetune", "shared": "shared"}
    rows = [
        [f"`{name}`", *(_measured(found[0], metric) for metric in metrics)]
        for name, target in targets.items()
        if (found := rows_of(results, f"benchmark-{target}"))
    ]
    return table(["model", *(LABELS[metric] for metric in metrics)], rows)


def drafters_table(rows: Sequence[dict]) -> str:
    """Every way to decode one model."""
    heads = [
        "drafter", "draft nodes", "as plain", "tokens per call", "acceptance by depth", "speedup",
        "step cost", "extra parameters", "speedup per million of them", "quality",
    ]  # fmt: skip
    return table(
        heads,
        [
            [
                f"`{_short(row['drafter'])}`",
                str(row["draft_nodes"]),
                str(row["identical"]),
                f"{row['tokens_per_call']:.2f}",
                " ".join(f"{share:.2f}" for share in row["acceptance_by_depth"]) or "-",
                "{value:.2f} ({low:.2f}-{high:.2f})".format(**row["speedup"]),
                f"{row['step_cost']:.2f}",
                f"{row['extra_parameters']:,}",
                _per_million(row),
                _quality(row),
            ]
            for row in rows
        ],
    )


def budget_table(task: TaskStudy, results: Mapping[str, Any]) -> str:
    """Tokens per call by node budget, a column for each way to draft."""
    curves = budget_curves(task, results)
    rows = [
        [
            str(nodes),
            *(f"{curve[nodes]:.2f}" if nodes in curve else "-" for curve in curves.values()),
        ]
        for nodes in task.nodes
        if any(nodes in curve for curve in curves.values())
    ]
    return table(["draft nodes", *curves], rows)


def budget_curves(task: TaskStudy, results: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """By way to draft: tokens per call by draft nodes."""
    curves: dict[str, dict[int, float]] = {}
    for model in _MODES:
        for row in rows_of(results, f"benchmark-{model}"):
            kind, _, settings = _short(row["drafter"]).partition(":")
            if not settings.startswith("num_nodes=") or ":" in settings:
                continue
            name = f"{model}: {kind}"
            curves.setdefault(name, {})[row["draft_nodes"]] = row["tokens_per_call"]
    return {name: curve for name, curve in curves.items() if len(curve) > 1}


def pruning_table(results: Mapping[str, Any]) -> str:
    """What pruning cost in tokens and saved in time, and the best-first tree beside it."""
    rows = [r for r in rows_of(results, "benchmark-lossless") if "static" in r["drafter"]]
    heads = ["tree", "nodes", "tokens per call", "milliseconds per pass", "speedup"]
    return table(
        heads,
        [
            [
                f"`{_short(row['drafter'])}`",
                str(row["draft_nodes"]),
                f"{row['tokens_per_call']:.2f}",
                f"{row['pass_ms']:.2f}",
                "{value:.2f} ({low:.2f}-{high:.2f})".format(**row["speedup"]),
            ]
            for row in rows
        ],
    )


def ablations_table(task: TaskStudy, results: Mapping[str, Any]) -> str:
    """One change of `shared` at a time."""
    rows = []
    for name in [training.name for training in study.ablations(task)]:
        found = rows_of(results, f"benchmark-{name}")
        wanted = f"streams:num_nodes={task.compared_nodes}"
        for row in found:
            if row["drafter"] == wanted:
                plain = found[0]
                rows.append(
                    [
                        f"`{name}`",
                        f"{row['tokens_per_call']:.2f}",
                        " ".join(f"{share:.2f}" for share in row["acceptance_by_depth"]),
                        _quality(plain),
                    ]
                )
    heads = ["change", "tokens per call", "acceptance by depth", "quality"]
    return table(heads, rows)


def _certificate(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"Certificate: {NOT_MEASURED}."
    return f"Certificate (`ssjax.verify`): {'holds' if result['holds'] else 'DOES NOT HOLD'}."


def _short(drafter: str) -> str:
    """The name without the directory of another model."""
    kind, colon, rest = drafter.partition(":")
    return kind.partition("@")[0] + colon + rest


def _quality(row: Mapping[str, Any]) -> str:
    """The metric of the paper's table with its interval."""
    name = _metric(row)
    return f"{LABELS[name]} {_measured(row, name)}"


def _metric(row: Mapping[str, Any]) -> str:
    return "exact_match" if "exact_match" in row else "rouge1"


def _measured(row: Mapping[str, Any], metric: str) -> str:
    low, high = row["intervals"][metric]
    return f"{row[metric]:.2f} ({low:.2f}-{high:.2f})"


def _per_million(row: Mapping[str, Any]) -> str:
    """Speedup by what a drafter adds to the model."""
    extra = row["extra_parameters"]
    return f"{1e6 * row['speedup']['value'] / extra:.2f}" if extra else "-"


def _pictures(task: TaskStudy, directory: Path, results: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> PNG: tokens per call by nodes, acceptance by depth, losses."""
    pictures = {}
    curves = budget_curves(task, results)
    if curves:
        lines = {name: sorted(curve.items()) for name, curve in curves.items()}
        pictures["tokens-per-call"] = _lines(lines, "draft nodes", "tokens per call")
    depths = {}
    for model in _MODES:
        for row in rows_of(results, f"benchmark-{model}"):
            if f"num_nodes={task.compared_nodes}" in row["drafter"]:
                kind = _short(row["drafter"]).partition(":")[0]
                shares = row["acceptance_by_depth"]
                depths.setdefault(f"{model}: {kind}", list(enumerate(shares, start=1)))
    if depths:
        pictures["acceptance"] = _lines(depths, "depth", "passes that kept a node there")
    losses = {}
    for training in study.models(task):
        path = directory / training.name / "metrics.jsonl"
        if path.exists():
            records = [json.loads(line) for line in path.read_text().splitlines()]
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

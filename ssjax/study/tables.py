"""The tables of a study's report, as Markdown, from the JSON results of its steps.

Results of a task are a mapping from the name of a step to what it wrote; a step that has not run is
not in it, and its table says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ssjax.data.tasks import get_task
from ssjax.evaluation import markdown
from ssjax.metrics.quality import LABELS, cell, shown_metrics
from ssjax.study import suites
from ssjax.study.suites import TaskStudy

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

MODES = {
    "lossless": "the base model, frozen",
    "shared": "fine-tuned with LoRA and streams: a new model",
    "detached": "fine-tuned with LoRA as without streams, and streams beside it",
}


def task_sections(task: TaskStudy, results: Mapping[str, Any]) -> list[str]:
    """The tables of a task."""
    sections = ["### Models", models_table(task, results)]
    sections += ["### Quality, plain decoding", quality_table(task, results)]
    for model, about in MODES.items():
        rows = rows_of(results, f"benchmark-{model}")
        chosen = [row for row in rows if _compared(task, row)]
        sections += [f"### Ways to decode `{model}`: {about}", drafters_table(chosen)]
        sections += [_certificate(results.get(f"verify-{model}"))]
    sections += ["### Tokens per call by draft nodes", budget_table(task, results)]
    if task.ablation_steps:
        sections += [
            "### The paper's trees, pruned and not",
            pruning_table(results),
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
    return one_of_several or name == "plain" or name.startswith("prompt_lookup")


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
        if short_name(row["drafter"]) == f"{kind}:num_nodes={task.compared_nodes}":
            speedup, metric = row["speedup"]["value"], row[_metric(row)]
            return f"{speedup:.2f} / {row['call_reduction']:.2f} / {metric:.2f}"
    return NOT_MEASURED


def models_table(task: TaskStudy, results: Mapping[str, Any]) -> str:
    """Parameters, time of training, and most tokens per call at the nodes that are compared."""
    heads = ["model", "parameters", "steps", "minutes", "tokens per call"]
    own_rows = {
        "shared": _drafted(task, results, "benchmark-shared", "streams"),
        "lossless": _drafted(task, results, "benchmark-lossless", "streams"),
        "detached": _drafted(task, results, "benchmark-detached", "streams"),
        "medusa": _drafted(task, results, "benchmark-lossless", "medusa"),
        "medusa-parent": _drafted(task, results, "benchmark-lossless", "medusa-parent"),
        "draft": _drafted(task, results, "benchmark-lossless", "draft_model"),
    }
    sizes = _parameters(results)
    rows = []
    for training in suites.models(task):
        name = training.name
        seconds = results.get("steps", {}).get(f"train-{name}", {}).get("seconds")
        if seconds is None:
            continue
        most = max((row["tokens_per_call"] for row in own_rows.get(name, ())), default=None)
        rows.append(
            [
                f"`{name}`",
                f"{sizes[name]:,}" if name in sizes else "-",
                str(training.steps),
                f"{seconds / 60:.1f}",
                f"{most:.2f}" if most else "-",
            ]
        )
    return table(heads, rows)


def _drafted(task: TaskStudy, results: Mapping[str, Any], name: str, kind: str) -> list[dict]:
    """Rows of the table of drafters whose drafts come from a kind of drafter alone."""
    rows = [row for row in rows_of(results, name) if _compared(task, row)]
    return [
        r
        for r in rows
        if short_name(r["drafter"]).split(":")[0] == kind and "lookup" not in r["drafter"]
    ]


def _parameters(results: Mapping[str, Any]) -> dict[str, int]:
    """Of each model that was decoded, with all that it needs for its own drafts."""
    sizes = {
        name: results[f"benchmark-{name}"]["parameters"]
        for name in ("finetune", "shared", "lossless", "detached")
        if f"benchmark-{name}" in results
    }
    extra: dict[str, int] = {}
    for row in rows_of(results, "benchmark-lossless"):
        kind = short_name(row["drafter"]).split(":")[0]
        extra[kind] = max(extra.get(kind, 0), row["extra_parameters"])
    if "streams" in extra:
        sizes["base"] = sizes["lossless"] - extra["streams"]
    for heads in ("medusa", "medusa-parent"):
        if heads in extra:
            sizes[heads] = sizes["base"] + extra[heads]
    if "draft_model" in extra:
        sizes["draft"] = extra["draft_model"]
    return sizes


def quality_table(task: TaskStudy, results: Mapping[str, Any]) -> str:
    """All metrics of the task, with 95% intervals, of the models that decode as targets."""
    metrics = shown_metrics(get_task(task.task).metrics)
    targets = {"base, lossless": "lossless"}
    targets |= {name: name for name in ("finetune", "shared", "detached")}
    rows = [
        [f"`{name}`", *(cell(found[0], metric, with_interval=True) for metric in metrics)]
        for name, target in targets.items()
        if (found := rows_of(results, f"benchmark-{target}"))
    ]
    return table(["model", *(LABELS[metric] for metric in metrics)], rows)


def drafters_table(rows: Sequence[dict]) -> str:
    """Every way to decode one model."""
    heads = [
        "drafter",
        "draft nodes",
        "as plain",
        "tokens per call",
        "acceptance by depth",
        "speedup",
        "step cost",
        "extra parameters",
        "speedup per million of them",
        "quality",
    ]
    return table(
        heads,
        [
            [
                f"`{short_name(row['drafter'])}`",
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
    for model in MODES:
        for row in rows_of(results, f"benchmark-{model}"):
            kind, _, settings = short_name(row["drafter"]).partition(":")
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
                f"`{short_name(row['drafter'])}`",
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
    for name in [training.name for training in suites.ablations(task)]:
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


def short_name(drafter: str) -> str:
    """The name without the directory of another model, but for what kind of heads it has."""
    model, colon, rest = drafter.partition(":")
    kind, _, directory = model.partition("@")
    own = directory.rpartition("/")[2]
    return (own if own.startswith(f"{kind}-") else kind) + colon + rest


def _quality(row: Mapping[str, Any]) -> str:
    """The metric of the paper's table with its interval."""
    name = _metric(row)
    return f"{LABELS[name]} {cell(row, name, with_interval=True)}"


def _metric(row: Mapping[str, Any]) -> str:
    return "exact_match" if "exact_match" in row else "rouge1"


def _per_million(row: Mapping[str, Any]) -> str:
    """Speedup by what a drafter adds to the model."""
    extra = row["extra_parameters"]
    return f"{1e6 * row['speedup']['value'] / extra:.2f}" if extra else "-"

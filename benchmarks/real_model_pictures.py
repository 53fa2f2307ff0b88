"""The two pictures of docs/real-models.md, from files that benchmark and evaluate wrote.

    python benchmarks/real_model_pictures.py --target docs/results/smollm2-135m \
        --example RUN/evaluation.json --results "E2E NLG=e2e_nlg-nodes.json,SqlContext=..."

`by-nodes.png`: tokens per call and speedup of whole requests by the number of draft nodes, a line
for each file of `python -m ssjax.benchmark --json`, whose rows streams:num_nodes=N it reads.
`accepted-runs.svg`: the example of `evaluation.json`, a box for what one pass emitted.
"""

import argparse
import html
import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssjax.files.reading import read_json_object
from ssjax.files.writing import make_directory, write_atomic

_CHARACTER, _LINE, _COLUMNS = 8.4, 30, 92  # pixels of a fixed-width font of 14 px; characters
# Shades told apart without colours too: their lightness differs.
_SHADES = ("#dbe9f6", "#a9cce8")


def by_nodes(results: dict[str, dict[str, Any]]) -> bytes:
    """A PNG of two panels, tokens per call and speedup of requests with its 95 % interval."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    tokens, speed = figure.subplots(1, 2)
    for name, result in results.items():
        rows = sorted(_tree_rows(result), key=lambda row: row["draft_nodes"])
        nodes = [row["draft_nodes"] for row in rows]
        tokens.plot(nodes, [row["tokens_per_call"] for row in rows], "o-", label=name)
        ratios = [row["speedup"] for row in rows]
        values = [ratio["value"] for ratio in ratios]
        beside = [
            [ratio["value"] - ratio["low"] for ratio in ratios],
            [ratio["high"] - ratio["value"] for ratio in ratios],
        ]
        speed.errorbar(nodes, values, yerr=beside, fmt="o-", capsize=2, label=name)
    for axes, label in ((tokens, "tokens per call"), (speed, "speedup of whole requests")):
        axes.axhline(1, color="black", linewidth=0.8)  # plain decoding
        axes.set(xlabel="draft nodes", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _tree_rows(result):
    """Rows of one batch whose drafter is streams with a number of nodes and nothing else."""
    return [
        row
        for row in result["rows"]
        if row["batch_size"] == 1 and row["drafter"] == f"streams:num_nodes={row['draft_nodes']}"
    ]


def accepted_runs(runs: list[str]) -> str:
    """An SVG of a text, a box for each run; a run that does not fit a line goes on in the next."""
    boxes, row, column = [], 0, 0
    for number, run in enumerate(runs):
        while run:
            if column == _COLUMNS:
                row, column = row + 1, 0
            piece, run = run[: _COLUMNS - column], run[_COLUMNS - column :]
            boxes.append(_box(piece, row, column, _SHADES[number % 2]))
            column += len(piece)
    width, height = _COLUMNS * _CHARACTER + 16, (row + 1) * _LINE + 12
    title = f"{len(runs)} passes, each box what one of them emitted"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" role="img" aria-label="{title}">\n<title>{title}</title>\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(boxes) + "\n</svg>\n"
    )


def runs_of(marked: str) -> list[str]:
    """The runs of a text as `evaluate` marks them, [one][ after another]."""
    return marked.removeprefix("[").removesuffix("]").split("][")


def _box(piece, row, column, shade):
    x, y, width = 8 + column * _CHARACTER, 8 + row * _LINE, len(piece) * _CHARACTER
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="24" fill="{shade}" '
        'stroke="white"/>'
        f'<text x="{x:.1f}" y="{y + 17}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs" '
        'font-family="monospace" font-size="14" fill="#111" xml:space="preserve">'
        f"{html.escape(piece)}</text>"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", required=True, help="directory of the pictures")
    parser.add_argument("--results", required=True, help="NAME=FILE,NAME=FILE")
    parser.add_argument("--example", required=True, help="evaluation.json of a run")
    arguments = parser.parse_args()
    named = dict(each.split("=", 1) for each in arguments.results.split(","))
    target = make_directory(arguments.target)
    results = {name: read_json_object(Path(file)) for name, file in named.items()}
    write_atomic(target / "by-nodes.png", by_nodes(results))
    example = read_json_object(Path(arguments.example))["example"]
    write_atomic(target / "accepted-runs.svg", accepted_runs(runs_of(example["runs"])))


if __name__ == "__main__":
    main()

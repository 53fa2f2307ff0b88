"""A benchmark as a picture: speedup, tokens per call and acceptance by depth of every drafter."""

import io
from collections.abc import Sequence
from typing import Any


def png(rows: Sequence[dict[str, Any]], title: str) -> bytes:
    """Three panels as a PNG file.

    Speedup over plain decoding with its 95 % interval, a bar for each drafter and batch size;
    tokens per call of each drafter; and how many passes kept a draft node at each depth. The last
    two are those of the first batch size: they hardly depend on it.

    Args:
      rows: of `ssjax.benchmark`, plain decoding among them.
      title: above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drafting = [row for row in rows if row["draft_nodes"]]
    names = list(dict.fromkeys(row["drafter"] for row in drafting))
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    figure = Figure(figsize=(13, 1.8 + 0.45 * len(names)), layout="constrained")
    figure.suptitle(title)
    speed, tokens, depth = figure.subplots(1, 3)
    height = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        for row in drafting:
            if row["batch_size"] != size:
                continue
            ratio = row["speedup"]
            place = names.index(row["drafter"]) + number * height
            beside = [[ratio["value"] - ratio["low"]], [ratio["high"] - ratio["value"]]]
            label = f"batch size {size}" if row["drafter"] == names[0] else None
            speed.barh(
                place, ratio["value"], height, xerr=beside, color=f"C{number}", label=label
            )  # fmt: skip
    first = [row for row in drafting if row["batch_size"] == sizes[0]]
    for row in first:
        place = names.index(row["drafter"])
        tokens.barh(place, row["tokens_per_call"], 0.8, color="C0")
        shares = row["acceptance_by_depth"]
        depth.plot(range(1, len(shares) + 1), shares, "o-", label=row["drafter"], markersize=4)
    middle = (len(sizes) - 1) * height / 2
    for axes, offset, label in ((speed, middle, "speedup"), (tokens, 0, "tokens per call")):
        axes.set_yticks([i + offset for i in range(len(names))], names, fontsize="small")
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)  # plain decoding
        axes.set(xlabel=label, xlim=(0, None))
    depth.set(xlabel="depth", ylabel="passes that kept a node there", ylim=(0, 1))
    for axes in (speed, depth):
        if names:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()

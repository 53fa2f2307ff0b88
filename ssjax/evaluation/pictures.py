"""Results as pictures. Each needs matplotlib, which only those who draw have to install."""

import io
from collections.abc import Sequence
from typing import Any

from ssjax.decoding.drafters import StaticDrafter
from ssjax.errors import UserError
from ssjax.evaluation.best_way import Acceptance, Calibration
from ssjax.evaluation.reliability import Chances, Reliability


def require_matplotlib() -> None:
    """Raises: UserError, if there is none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib; run pip install 'ssjax[plot]'") from None


def of_benchmark(rows: Sequence[dict[str, Any]], title: str) -> bytes:
    """A benchmark in three panels, as a PNG file.

    Speedup over plain decoding with its 95 % interval, a bar for each drafter and batch size;
    tokens per call of each drafter; and how many passes kept a draft node at each depth. The last
    two are those of the first batch size: they hardly depend on it.

    Args:
      rows: of `ssjax.benchmark`, plain decoding among them.
      title: above the panels.
    """
    drafting = [row for row in rows if row["draft_nodes"]]
    names = list(dict.fromkeys(row["drafter"] for row in drafting))
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    figure = _figure((13, 1.8 + 0.45 * len(names)), title)
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
            style = {"xerr": beside, "color": f"C{number}", "label": label}
            speed.barh(place, ratio["value"], height, **style)
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
    return _png(figure)


def of_calibration(
    acceptance: Acceptance, calibrations: Sequence[Calibration], title: str
) -> bytes:
    """A calibration in three panels, as a PNG file.

    On the left every drafter that was predicted, a curve for each kind and number of streams. In
    the middle every pass that was timed, relative to the plain pass of the same batch size, a
    curve for each execution order; with several numbers of streams, or kinds of tree, the
    fastest pass with that many nodes. A pass pays where it takes fewer plain passes than it
    emits tokens. On the right the share of draft nodes that was kept by their chance, without and
    with the fitted temperatures; on the diagonal chances are true.
    """
    figure = _figure((15, 4.2), title)
    left, right, truth = figure.subplots(1, 3)
    for name, points in tokens_by_nodes(acceptance).items():
        style = "s--" if name.startswith("static") else "o-"
        left.plot(*zip(*points, strict=True), style, label=name, markersize=4)
    left.set(xlabel="draft nodes", ylabel="tokens per call", ylim=(1, None))
    for calibration in calibrations:
        for order, points in relative_time_by_nodes(calibration).items():
            style = "o-" if order == "deferred" else "s--"
            label = f"batch size {calibration.batch_size}, streams {order}"
            right.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    right.set(xlabel="draft nodes", ylabel="pass time, plain pass = 1", ylim=(0, None))
    truth.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for name, reliability in chances_by_name(acceptance.chances).items():
        points = [(each.predicted, each.kept) for each in reliability.bins]
        label = f"{name}, mean error {reliability.error:.3f}"
        truth.plot(*zip(*points, strict=True), "o-", label=label, markersize=4)
    truth.set(xlabel="chance of a draft node", ylabel="share kept", ylim=(0, 1))
    for axes in (left, right, truth):
        axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return _png(figure)


def chances_by_name(chances: Chances) -> dict[str, Reliability]:
    """What is drawn of the chances; without nodes nothing."""
    both = {"temperature 1": chances.plain, "fitted temperatures": chances.fitted}
    return {name: reliability for name, reliability in both.items() if reliability.bins}


def tokens_by_nodes(acceptance: Acceptance) -> dict[str, list[tuple[int, float]]]:
    """By kind of tree: (draft nodes, tokens per call), rising; no draft nodes give one token."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for drafter, tokens in acceptance.tokens_per_call.items():
        if len(drafter.widths) > 1:
            continue  # it has no one number of nodes
        streams = drafter.num_streams
        name = f"best-first, {streams} stream{'s' * (streams != 1)}"
        if isinstance(drafter, StaticDrafter):
            name = "static"
        curves.setdefault(name, [(0, 1.0)]).append((drafter.num_nodes - 1, tokens))
    return {name: sorted(points) for name, points in curves.items()}


def relative_time_by_nodes(calibration: Calibration) -> dict[str, list[tuple[int, float]]]:
    """By execution order: (draft nodes, seconds of the fastest such pass / of a plain pass)."""
    plain = calibration.plain.seconds_per_pass
    curves: dict[str, dict[int, float]] = {}
    for candidate in calibration.candidates[1:]:
        order = "deferred" if candidate.way.deferred else "beside every node"
        if len(candidate.way.drafter.widths) > 1:
            continue  # it has no one number of nodes
        nodes = candidate.way.drafter.num_nodes - 1
        fastest = curves.setdefault(order, {0: 1.0})
        ratio = candidate.seconds_per_pass / plain
        fastest[nodes] = min(ratio, fastest.get(nodes, ratio))
    return {order: sorted(points.items()) for order, points in curves.items()}


def _figure(size: tuple[float, float], title: str):
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    return figure


def _png(figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()

"""A calibration as a picture: tokens per call by node budget, and pass time by nodes."""

import io
from collections.abc import Sequence

from ssjax.decoding.drafters import StaticDrafter
from ssjax.errors import UserError
from ssjax.evaluation.calibration import Acceptance, Calibration


def require_matplotlib() -> None:
    """Raises: UserError, if there is none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib; run pip install 'ssjax[plot]'") from None


def png(acceptance: Acceptance, calibrations: Sequence[Calibration], title: str) -> bytes:
    """Two panels as a PNG file.

    On the left every drafter that was predicted, a curve for each kind and number of streams. On
    the right every pass that was timed, relative to the plain pass of the same batch size, a
    curve for each execution order; with several numbers of streams, or kinds of tree, the
    fastest pass with that many nodes. A pass pays where it takes fewer plain passes than it
    emits tokens.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
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
    for axes in (left, right):
        axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def tokens_by_nodes(acceptance: Acceptance) -> dict[str, list[tuple[int, float]]]:
    """By kind of tree: (draft nodes, tokens per call), rising; no draft nodes give one token."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for drafter, tokens in acceptance.tokens_per_call.items():
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
        nodes = candidate.way.drafter.num_nodes - 1
        fastest = curves.setdefault(order, {0: 1.0})
        ratio = candidate.seconds_per_pass / plain
        fastest[nodes] = min(ratio, fastest.get(nodes, ratio))
    return {order: sorted(points.items()) for order, points in curves.items()}

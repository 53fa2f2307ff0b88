"""The picture of a benchmark: one bar for each drafter and batch size."""

import pytest

from ssjax.evaluation import pictures


def row(drafter, batch_size, nodes, value):
    return {
        "drafter": drafter,
        "batch_size": batch_size,
        "draft_nodes": nodes,
        "speedup": {"value": value, "low": 0.9 * value, "high": 1.2 * value},
        "tokens_per_call": 1 + nodes / 4,
        "acceptance_by_depth": [0.8, 0.4][:nodes],
    }


ROWS = [
    row(name, size, nodes, 0.5 + nodes / size)
    for size in (1, 4)
    for name, nodes in (("plain", 0), ("streams", 4), ("medusa@DIR", 2))
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:3], ROWS[:1]])
def test_it_is_a_png(rows):
    pytest.importorskip("matplotlib")
    content = pictures.of_benchmark(rows, "title")
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_every_drafter_has_its_bars(monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    axes = pytest.importorskip("matplotlib.axes").Axes
    barh = axes.barh

    def recording(self, place, width, *arguments, **options):
        drawn.append((round(place, 3), round(width, 3)))
        return barh(self, place, width, *arguments, **options)

    monkeypatch.setattr(axes, "barh", recording)
    assert figure and pictures.of_benchmark(ROWS, "title")
    assert drawn == [(0, 4.5), (1, 2.5), (0.4, 1.5), (1.4, 1.0), (0, 2.0), (1, 1.5)]

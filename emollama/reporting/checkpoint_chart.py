"""The chart of ``emollama eval-checkpoints``: metrics over checkpoints, one row per block and task, one panel per scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emollama.reporting.measures import block_and_task, higher_is_better, metric_title, registered_metric
from emollama.reporting.panels import DASHES, MARKERS, RING
from emollama.reporting.plotting import COLOURS, QUIET, WIDTH, png, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Sequence[float | None]
MAX_TICKS = 9  # named checkpoints along an axis
MAX_COLUMNS = 3  # panels next to each other
LEGEND_COLUMNS = 4  # metrics per line of a legend


def checkpoint_chart(ticks: Sequence[str], aside: int, series: Mapping[str, Series]) -> bytes:
    """Draw the metrics over the checkpoints as a PNG.

    Args:
        ticks: names of the checkpoints in order: the start of the training, numbers of epochs, other files.
        aside: number of checkpoints at the end that are not part of the training; they are drawn without a line.
        series: ``block/task/metric`` -> value at each checkpoint.
    """
    rows = list(_panel_rows(group_panels(series)))
    columns = max(map(len, rows))

    def draw(figure: Figure) -> None:
        ratios = [1.6, *[1.0] * (columns - 1)]
        for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False, width_ratios=ratios), rows, strict=True):
            for ax, keys in zip(axes, row, strict=False):
                _draw_panel(ax, ticks, aside, {key: series[key] for key in keys})
            for ax in axes[len(row) :]:
                ax.set_axis_off()

    return png(draw, WIDTH if columns > 1 else 0.7 * WIDTH, 3.6 * len(rows))


def group_panels(series: Mapping[str, Series]) -> dict[tuple[str, str], list[str]]:
    """Group metrics by panel, that is by block, task and scale. A metric without a best value has a panel of its own."""
    panels: dict[tuple[str, str], list[str]] = {}
    for key, values in series.items():
        name = key.rpartition("/")[2]
        metric = registered_metric(name)
        scale = name if metric is None or metric.max_value is None else f"{metric.max_value:g}"
        if any(value is not None for value in values):
            panels.setdefault((block_and_task(key), scale), []).append(key)
    return panels


def _panel_rows(panels: Mapping[tuple[str, str], list[str]]) -> Iterator[list[list[str]]]:
    """Yield the panels of each block and task, in rows of at most MAX_COLUMNS; panels with the most metrics come first."""
    for block in dict.fromkeys(block for block, _ in panels):
        own = sorted((keys for (other, _), keys in panels.items() if other == block), key=len, reverse=True)
        yield from (own[first : first + MAX_COLUMNS] for first in range(0, len(own), MAX_COLUMNS))


def _draw_panel(ax: Axes, ticks: Sequence[str], aside: int, series: Mapping[str, Series]) -> None:
    trained = len(ticks) - aside
    for number, (key, values) in enumerate(series.items()):
        points = [(at, value) for at, value in enumerate(values) if value is not None]
        look = _look(number)
        line = [point for point in points if point[0] < trained]
        ax.plot([at for at, _ in line], [value for _, value in line], label=short(metric_title(_name(key)), 24), **look)
        ax.plot([at for at, _ in points[len(line) :]], [value for _, value in points[len(line) :]], **look | {"linestyle": ""})
        better = higher_is_better(_name(key))
        if better is not None and len(points) > 1:
            best = (max if better else min)(points, key=lambda point: point[1])
            ax.plot(*best, **RING, markersize=10, markeredgecolor=look["color"])
    _name_panel(ax, list(series))
    _name_ticks(ax, ticks)
    ax.margins(y=0.1)


def _name_panel(ax: Axes, keys: Sequence[str]) -> None:
    """Write block and task, and the metrics: several into a legend, a single one as the title."""
    titles = [metric_title(_name(key)) for key in keys]
    lines = -(-len(keys) // LEGEND_COLUMNS) if len(keys) > 1 else 0
    ax.set_title(short(block_and_task(keys[0]), 44) if lines else short(titles[0], 30), pad=8 + 15 * lines)
    if lines:
        position: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
        ax.legend(ncols=LEGEND_COLUMNS, fontsize=9, handlelength=1.6, columnspacing=1.2, handletextpad=0.5, **position)
    else:
        ax.text(1, 1.03, short(block_and_task(keys[0]), 28), transform=ax.transAxes, fontsize=8.5, color=QUIET, ha="right")
    if all(higher_is_better(_name(key)) is False for key in keys):
        ax.set_ylabel("lower is better", color=QUIET)


def _name_ticks(ax: Axes, ticks: Sequence[str]) -> None:
    """Label the checkpoints, as many as fit; labels that are not numbers are always shown."""
    step = -(-len(ticks) // MAX_TICKS)
    shown = [at for at, tick in enumerate(ticks) if not tick.isdecimal() or at % step == 1 % step]
    ax.set_xticks(shown, [short(ticks[at], 14) for at in shown])
    for label in ax.get_xticklabels():
        if not label.get_text().isdecimal():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.4, len(ticks) - 0.6)
    ax.set_xlabel("epoch (ring: best value)")


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _look(number: int) -> dict[str, Any]:
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.8, "linestyle": dashes}

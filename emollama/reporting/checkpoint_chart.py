"""The chart of a sweep: metrics over the checkpoints, a row a block and task, a panel a scale, losses apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emollama.reporting.measures import block_and_task, higher_is_better, registered_metric, title_of
from emollama.reporting.panels import DASHES, MARKERS, RING
from emollama.reporting.plotting import COLOURS, QUIET, WIDTH, png, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Sequence[float | None]
TICKS = 9  # most names of checkpoints along an axis
ACROSS = 3  # most panels side by side
LISTED = 4  # metrics that a line of a legend holds


def checkpoint_chart(ticks: Sequence[str], aside: int, series: Mapping[str, Series]) -> bytes:
    """Lines over checkpoints.

    Args:
        ticks: the checkpoints' names, in order: what training began from, the epochs' numbers, others.
        aside: how many of them, at the end, are no part of the training; they are drawn without a line.
        series: ``block/task/metric`` -> its value at each checkpoint.
    """
    rows = list(_rows(panels_of(series)))
    columns = max(map(len, rows))

    def draw(figure: Figure) -> None:
        ratios = [1.6, *[1.0] * (columns - 1)]
        for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False, width_ratios=ratios), rows, strict=True):
            for ax, keys in zip(axes, row, strict=False):
                _draw_panel(ax, ticks, aside, {key: series[key] for key in keys})
            for ax in axes[len(row) :]:
                ax.set_axis_off()

    return png(draw, WIDTH if columns > 1 else 0.7 * WIDTH, 3.6 * len(rows))


def panels_of(series: Mapping[str, Series]) -> dict[tuple[str, str], list[str]]:
    """(block and task, scale) -> the metrics drawn together: those of one scale. A metric without a best value stands alone."""
    panels: dict[tuple[str, str], list[str]] = {}
    for key, values in series.items():
        name = key.rpartition("/")[2]
        known = registered_metric(name)
        scale = name if known is None or known.top is None else f"{known.top:g}"
        if any(value is not None for value in values):
            panels.setdefault((block_and_task(key), scale), []).append(key)
    return panels


def _rows(panels: Mapping[tuple[str, str], list[str]]) -> Iterator[list[list[str]]]:
    """The panels of each block and task side by side, those with most metrics first."""
    for place in dict.fromkeys(place for place, _ in panels):
        own = sorted((keys for (other, _), keys in panels.items() if other == place), key=len, reverse=True)
        yield from (own[first : first + ACROSS] for first in range(0, len(own), ACROSS))


def _draw_panel(ax: Axes, ticks: Sequence[str], aside: int, series: Mapping[str, Series]) -> None:
    trained = len(ticks) - aside
    for number, (key, values) in enumerate(series.items()):
        points = [(at, value) for at, value in enumerate(values) if value is not None]
        look = _look(number)
        line = [point for point in points if point[0] < trained]
        ax.plot([at for at, _ in line], [value for _, value in line], label=short(title_of(_name(key)), 24), **look)
        ax.plot([at for at, _ in points[len(line) :]], [value for _, value in points[len(line) :]], **look | {"linestyle": ""})
        better = higher_is_better(_name(key))
        if better is not None and len(points) > 1:
            best = (max if better else min)(points, key=lambda point: point[1])
            ax.plot(*best, **RING, markersize=10, markeredgecolor=look["color"])
    _name_panel(ax, list(series))
    _name_ticks(ax, ticks)
    ax.margins(y=0.1)


def _name_panel(ax: Axes, keys: Sequence[str]) -> None:
    """Its block and task, and its metrics: in a legend, or a single one beside the place."""
    titles = [title_of(_name(key)) for key in keys]
    lines = -(-len(keys) // LISTED) if len(keys) > 1 else 0
    ax.set_title(short(block_and_task(keys[0]), 44) if lines else short(titles[0], 30), pad=8 + 15 * lines)
    if lines:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
        ax.legend(ncols=LISTED, fontsize=9, handlelength=1.6, columnspacing=1.2, handletextpad=0.5, **place)
    else:
        ax.text(1, 1.03, short(block_and_task(keys[0]), 28), transform=ax.transAxes, fontsize=8.5, color=QUIET, ha="right")
    if all(higher_is_better(_name(key)) is False for key in keys):
        ax.set_ylabel("lower is better", color=QUIET)


def _name_ticks(ax: Axes, ticks: Sequence[str]) -> None:
    """The checkpoints' names, as many as fit; what is no number always."""
    step = -(-len(ticks) // TICKS)
    shown = [at for at, tick in enumerate(ticks) if not tick.isdecimal() or at % step == 1 % step]
    ax.set_xticks(shown, [short(ticks[at], 14) for at in shown])
    for label in ax.get_xticklabels():
        if not label.get_text().isdecimal():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.4, len(ticks) - 0.6)
    ax.set_xlabel("epoch (a ring: the best)")


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _look(number: int) -> dict[str, Any]:
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.8, "linestyle": dashes}

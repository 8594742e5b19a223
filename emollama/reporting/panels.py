"""Charts of metrics by epoch: one small panel per metric, one line per run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from emollama.reporting.measures import block_and_task, higher_is_better, metric_title
from emollama.reporting.plotting import COLOURS, GREY, QUIET, WIDTH, integer_ticks, png, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lines take the colours in turn; each dash pattern serves one round of colours.
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "markeredgewidth": 1.4, "linestyle": ""}
BEST_EPOCH: dict[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (4, 3))}
LEVEL: dict[str, Any] = {"linewidth": 1.4, "linestyle": (0, (1, 1.5))}
PANELS = 30  # maximum per picture


@dataclass(frozen=True)
class Line:
    """The values of a metric in one run.

    Attributes:
        name: name of the run in the legend.
        points: (epoch, value), in order of epochs; -1 is the start of the training.
        level: value without an epoch, drawn as a horizontal line.
    """

    name: str
    points: list[tuple[int, float]] = field(default_factory=list)
    level: float | None = None


@dataclass(frozen=True)
class Panel:
    """The panel of one metric.

    Attributes:
        title: name of the metric.
        block: block and task.
        higher_is_better: whether higher values are better; None if unknown.
        lines: one line per run.
    """

    title: str
    block: str
    higher_is_better: bool | None
    lines: list[Line]


def metric_panel(key: str, lines: list[Line]) -> Panel:
    """Return the panel of the metric with the key ``<block>/<task>/<metric>``."""
    metric = key.rpartition("/")[2]
    return Panel(metric_title(metric), block_and_task(key), higher_is_better(metric), lines)


def best_point(points: Sequence[tuple[int, float]], higher_is_better: bool | None) -> tuple[int, float] | None:
    """Return the first of the best (epoch, value) pairs; None without points or if the direction of the metric is unknown."""
    if not points or higher_is_better is None:
        return None
    return max(points, key=lambda point: (point[1] if higher_is_better else -point[1], -point[0]))


def metric_panels(panels: Sequence[Panel], best_epoch: int | None = None) -> bytes | None:
    """Draw one small panel per metric, with a ring around the best epoch of each line.

    Args:
        panels: the panels; at most :data:`PANELS` are drawn.
        best_epoch: epoch to mark in all panels: the best one by ``run.metric``.

    Returns:
        A PNG, or None if there is nothing to draw.
    """
    panels = [shown for panel in panels if (shown := replace(panel, lines=list(filter(_has_data, panel.lines)))).lines][:PANELS]
    if not panels:
        return None
    names = _names(panels)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    entries = legend_entries(panels, best_epoch)
    top = 0.2 + 0.24 * math.ceil(len(entries) / 3) if entries else 0.0  # inches for the legend

    def draw(figure: Figure) -> None:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, panel in zip(axes, panels, strict=False):
            draw_panel(ax, panel, names, best_epoch)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        handles = [_handle(look) for look in entries]
        figure.legend(handles=handles, loc="upper left", ncols=3, fontsize=9, borderaxespad=0.3, columnspacing=2.0)

    return png(draw, WIDTH if columns == 3 else 1 + 4.2 * columns, top + 2.45 * rows, top=top)


def _names(panels: Sequence[Panel]) -> list[str]:
    return list(dict.fromkeys(line.name for panel in panels for line in panel.lines if _has_data(line)))


def _has_data(line: Line) -> bool:
    return bool(line.points) or line.level is not None


def _by_epoch(panel: Panel) -> bool:
    return any(line.points for line in panel.lines)


def draw_panel(ax: Axes, panel: Panel, names: Sequence[str], best_epoch: int | None) -> None:
    """Draw one panel.

    Args:
        ax: empty axes.
        panel: the panel.
        names: names of all lines in the picture, which determine the colours.
        best_epoch: epoch to mark.
    """
    better = {True: "higher is better", False: "lower is better", None: ""}[panel.higher_is_better]
    ax.set_title(short(panel.title, 40), pad=17)
    ax.text(0, 1.04, short(panel.block, 48), transform=ax.transAxes, fontsize=8.5, color=QUIET)
    ax.set_ylabel(better, fontsize=8.5, color=QUIET)
    for line in panel.lines:
        look = _look(names.index(line.name))
        if line.points:
            ax.plot(*zip(*line.points, strict=True), **look)
        if line.level is not None and _by_epoch(panel):
            ax.axhline(line.level, color=look["color"], **LEVEL)
        elif line.level is not None:
            ax.plot([names.index(line.name)], [line.level], **look)
        _draw_best(ax, best_point(line.points, panel.higher_is_better), look["color"], above=panel.higher_is_better is True)
    ax.margins(x=0.1, y=0.25)
    if not _by_epoch(panel):
        ax.set(xticks=[], xlim=(-0.7, len(names) - 0.3))
        return
    if best_epoch is not None:
        ax.axvline(best_epoch, zorder=1, **BEST_EPOCH)
    starts = any(epoch < 0 for line in panel.lines for epoch, _ in line.points)
    ax.set_xlabel("epoch (-1: start of the training)" if starts else "epoch")
    integer_ticks(ax.xaxis, 8)


def _draw_best(ax: Axes, best: tuple[int, float] | None, colour: str, *, above: bool) -> None:
    """Draw a ring around the best point, and write its value."""
    from matplotlib.patheffects import withStroke

    if best:
        ax.plot(*best, **RING, markersize=9, markeredgecolor=colour)
        position: dict[str, Any] = {"xytext": (0, 7 if above else -7), "va": "bottom" if above else "top", "ha": "center"}
        halo = [withStroke(linewidth=2.5, foreground="white")]
        text = f"{best[1]:.4g}"
        ax.annotate(text, best, textcoords="offset points", fontsize=8.5, color=colour, path_effects=halo, zorder=5, **position)


def _look(index: int) -> dict[str, Any]:
    """Return the style of the line of the run at this index."""
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1.6, "markersize": 4.5}


def legend_entries(panels: Sequence[Panel], best_epoch: int | None = None) -> list[dict[str, Any]]:
    """Return the entries of the legend, each with "label" and style: runs that have names, and the marks that occur."""
    by_epoch = any(map(_by_epoch, panels))
    levels = any(line.level is not None for panel in panels if _by_epoch(panel) for line in panel.lines)
    entries = [_look(index) | {"label": short(name, 40)} for index, name in enumerate(_names(panels)) if name]
    if by_epoch:
        entries.append(RING | {"markeredgecolor": QUIET, "markersize": 8, "label": "best epoch"})
    if by_epoch and best_epoch is not None:
        entries.append(BEST_EPOCH | {"label": f"epoch {best_epoch}: best by run.metric"})
    if levels:
        entries.append(LEVEL | {"color": QUIET, "label": "evaluation without an epoch"})
    return entries


def _handle(look: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)

"""Metrics by epoch: a small panel a metric, a line a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from emollama.reporting.plotting import COLOURS, GREY, QUIET, WIDTH, count_in_whole_numbers, png, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")  # a round of the colours each
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "markeredgewidth": 1.4, "linestyle": ""}
KEPT: dict[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (4, 3))}
LEVEL: dict[str, Any] = {"linewidth": 1.4, "linestyle": (0, (1, 1.5))}
PANELS = 30  # most that one picture holds


@dataclass(frozen=True)
class Line:
    """One run's values of a metric.

    Attributes:
        name: the run's, for the legend.
        points: (epoch, value), by epoch.
        level: a value that belongs to no epoch, drawn across.
    """

    name: str
    points: list[tuple[int, float]] = field(default_factory=list)
    level: float | None = None


@dataclass(frozen=True)
class Panel:
    """One metric of one block and task (``place``); ``higher_is_better`` is None where nobody knows."""

    title: str
    place: str
    higher_is_better: bool | None
    lines: list[Line]


def best_point(points: Sequence[tuple[int, float]], higher_is_better: bool | None) -> tuple[int, float] | None:
    """The first of the best (epoch, value) pairs; None where there are none, or nobody knows which way is better."""
    if not points or higher_is_better is None:
        return None
    return max(points, key=lambda point: (point[1] if higher_is_better else -point[1], -point[0]))


def metric_panels(panels: Sequence[Panel], kept: int | None = None) -> bytes | None:
    """A small panel a metric, its values by epoch, each line's best epoch ringed; None where there is nothing to draw.

    Args:
        panels: at most :data:`PANELS` of them are drawn.
        kept: an epoch to mark in all of them: the best one by the metric that the run watches.
    """
    panels = [drawn for panel in panels if (drawn := replace(panel, lines=list(filter(_shows, panel.lines)))).lines][:PANELS]
    if not panels:
        return None
    names = _names(panels)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    marks = legend_of(panels, kept)
    top = 0.2 + 0.24 * math.ceil(len(marks) / 3) if marks else 0.0  # inches for the legend

    def draw(figure: Figure) -> None:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, panel in zip(axes, panels, strict=False):
            draw_panel(ax, panel, names, kept)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        handles = [_handle(look) for look in marks]
        figure.legend(handles=handles, loc="upper left", ncols=3, fontsize=9, borderaxespad=0.3, columnspacing=2.0)

    return png(draw, WIDTH if columns == 3 else 1 + 4.2 * columns, top + 2.45 * rows, top=top)


def _names(panels: Sequence[Panel]) -> list[str]:
    return list(dict.fromkeys(line.name for panel in panels for line in panel.lines if _shows(line)))


def _shows(line: Line) -> bool:
    return bool(line.points) or line.level is not None


def _by_epoch(panel: Panel) -> bool:
    return any(line.points for line in panel.lines)


def draw_panel(ax: Axes, panel: Panel, names: Sequence[str], kept: int | None) -> None:
    """One panel; ``names`` are those of all lines of the picture, in the order of their colours."""
    better = {True: "higher is better", False: "lower is better", None: ""}[panel.higher_is_better]
    ax.set_title(short(panel.title, 40), pad=17)
    ax.text(0, 1.04, short(panel.place, 48), transform=ax.transAxes, fontsize=8.5, color=QUIET)
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
    if kept is not None:
        ax.axvline(kept, zorder=1, **KEPT)
    ax.set_xlabel("epoch")
    count_in_whole_numbers(ax.xaxis, 8)


def _draw_best(ax: Axes, best: tuple[int, float] | None, colour: str, *, above: bool) -> None:
    """A ring around the best point, and its value."""
    from matplotlib.patheffects import withStroke

    if best:
        ax.plot(*best, **RING, markersize=9, markeredgecolor=colour)
        place: dict[str, Any] = {"xytext": (0, 7 if above else -7), "va": "bottom" if above else "top", "ha": "center"}
        halo = [withStroke(linewidth=2.5, foreground="white")]
        text = f"{best[1]:.4g}"
        ax.annotate(text, best, textcoords="offset points", fontsize=8.5, color=colour, path_effects=halo, zorder=5, **place)


def _look(place: int) -> dict[str, Any]:
    """How the line of the run at a place is drawn."""
    dashes = DASHES[place // len(COLOURS) % len(DASHES)]
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1.6, "markersize": 4.5}


def legend_of(panels: Sequence[Panel], kept: int | None = None) -> list[dict[str, Any]]:
    """What the legend explains, each with its "label" and look: the runs, where they have names, and the marks that occur."""
    by_epoch = any(map(_by_epoch, panels))
    levels = any(line.level is not None for panel in panels if _by_epoch(panel) for line in panel.lines)
    marks = [_look(place) | {"label": short(name, 40)} for place, name in enumerate(_names(panels)) if name]
    if by_epoch:
        marks.append(RING | {"markeredgecolor": QUIET, "markersize": 8, "label": "best epoch"})
    if by_epoch and kept is not None:
        marks.append(KEPT | {"label": f"epoch {kept}: the best by run.metric"})
    if levels:
        marks.append(LEVEL | {"color": QUIET, "label": "evaluated by the script"})
    return marks


def _handle(look: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)

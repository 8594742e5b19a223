"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emollama.reporting.json_io import number
from emollama.reporting.plotting import COLOURS, WIDTH, count_in_whole_numbers, log_scale, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[str, str, str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # name, title, colour, (steps, values)

CURVES = (("loss", "training loss", COLOURS[0]), ("lr", "learning rate", COLOURS[2]), ("grad_norm", "gradient norm", COLOURS[1]))


def training_curves(steps: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Loss, learning rate and gradient norm by step, each logged value and the mean around it; None where none was logged."""
    curves = curves_of(steps)
    return png(lambda figure: draw_curves(figure, curves), WIDTH, 1.2 + 2.1 * len(curves)) if curves else None


def curves_of(steps: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """What was logged of :data:`CURVES`."""
    curves = [(name, title, colour, _curve(steps, name)) for name, title, colour in CURVES]
    return [curve for curve in curves if len(curve[3][0])]


def draw_curves(figure: Figure, curves: Sequence[Curve]) -> None:
    """Each curve below the other, over the same steps."""
    heights = [1.7 if name == "loss" else 1.0 for name, *_ in curves]
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, title, colour, (at, values)) in zip(axes, curves, strict=True):
        _draw_curve(ax, at, values, colour, smooth=name != "lr")
        ax.margins(x=0.01)
        ax.set_title(title + (" (log scale)" if ax.get_yscale() == "log" else ""))
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, fontsize=9)
    axes[-1].set_xlabel("step")
    count_in_whole_numbers(axes[-1].xaxis, 10)


def _curve(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [(number(row.get("step")), number(row.get(name))) for row in steps]
    found = [(at, value) for at, value in pairs if at is not None and value is not None]
    return np.array([at for at, _ in found]), np.array([value for _, value in found])


def _draw_curve(ax: Axes, at: NDArray[np.float64], values: NDArray[np.float64], colour: str, *, smooth: bool) -> None:
    window = max(5, len(values) // 50)
    if smooth and len(values) >= 20:
        ax.plot(at, values, color=colour, alpha=0.3, linewidth=0.8, label="each logged value")
        ax.plot(at, smoothed(values, window), color=colour, linewidth=1.8, label=f"mean of {window} around it")
    else:
        ax.plot(at, values, color=colour, linewidth=1.6, marker="o" if len(values) < 20 else "", markersize=3)
    if values.min() > 0 and smooth and values.max() > 100 * np.median(values):
        log_scale(ax)


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of up to ``window`` values around each; fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")

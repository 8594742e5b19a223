"""The plot of training curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emollama.reporting.plotting import COLOURS, WIDTH, integer_ticks, log_scale, png
from emollama.run_folder import StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[str, str, str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # name, title, colour, (steps, values)

# Name, title, colour and values of each curve.
CURVES: tuple[tuple[str, str, str, Callable[[StepRecord], float | None]], ...] = (
    ("loss", "training loss", COLOURS[0], lambda record: record.loss),
    ("lr", "learning rate", COLOURS[2], lambda record: record.lr),
    ("grad_norm", "gradient norm", COLOURS[1], lambda record: record.grad_norm),
)


def training_curves(steps: Sequence[StepRecord]) -> bytes | None:
    """Draw loss, learning rate and gradient norm by step, with moving averages. Returns a PNG, or None if nothing was logged."""
    curves = logged_curves(steps)
    return png(lambda figure: draw_curves(figure, curves), WIDTH, 1.2 + 2.1 * len(curves)) if curves else None


def logged_curves(steps: Sequence[StepRecord]) -> list[Curve]:
    """Return those of :data:`CURVES` that have logged values."""
    curves = [(name, title, colour, _curve(steps, value_of)) for name, title, colour, value_of in CURVES]
    return [curve for curve in curves if len(curve[3][0])]


def draw_curves(figure: Figure, curves: Sequence[Curve]) -> None:
    """Draw the curves below each other, over the same steps."""
    heights = [1.7 if name == "loss" else 1.0 for name, *_ in curves]
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, title, colour, (at, values)) in zip(axes, curves, strict=True):
        _draw_curve(ax, at, values, colour, smooth=name != "lr")
        ax.margins(x=0.01)
        ax.set_title(title + (" (log scale)" if ax.get_yscale() == "log" else ""))
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, fontsize=9)
    axes[-1].set_xlabel("step")
    integer_ticks(axes[-1].xaxis, 10)


def _curve(
    steps: Sequence[StepRecord], value_of: Callable[[StepRecord], float | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = [(record.step, value) for record in steps if (value := value_of(record)) is not None]
    return np.array([at for at, _ in points], dtype=float), np.array([value for _, value in points], dtype=float)


def _draw_curve(ax: Axes, at: NDArray[np.float64], values: NDArray[np.float64], colour: str, *, smooth: bool) -> None:
    window = max(5, len(values) // 50)
    if smooth and len(values) >= 20:
        ax.plot(at, values, color=colour, alpha=0.3, linewidth=0.8, label="logged value")
        ax.plot(at, smoothed(values, window), color=colour, linewidth=1.8, label=f"moving average ({window} values)")
    else:
        ax.plot(at, values, color=colour, linewidth=1.6, marker="o" if len(values) < 20 else "", markersize=3)
    if values.min() > 0 and smooth and values.max() > 100 * np.median(values):
        log_scale(ax)


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the centred moving average over ``window`` values, fewer at both ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")

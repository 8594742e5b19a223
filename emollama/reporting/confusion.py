"""The plot of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from emollama.reporting.plotting import png, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def confusion_matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes | None:
    """Draw a confusion matrix with one row per true label. A cell shows the count and its fraction of the row.

    Args:
        labels: labels of rows and columns.
        counts: (labels, labels + 1); the last column, which is drawn separately on the right, counts answers without a label.

    Returns:
        A PNG, or None without labels.
    """
    if not labels:
        return None
    table = np.array(counts, dtype=float)
    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
    size = len(labels)
    side = min(max(0.82 * size, 3.0), 12.0)  # inches
    centres = np.append(np.arange(size), size + 0.35)

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for columns, extent in ((slice(0, size), (-0.5, size - 0.5)), (slice(size, None), (size - 0.15, size + 0.85))):
            ax.imshow(
                shares[:, columns], cmap="Blues", vmin=0, vmax=1, extent=(*extent, size - 0.5, -0.5), interpolation="nearest"
            )
        ax.set(xlim=(-0.5, size + 0.85), ylim=(size - 0.5, -0.5), xticks=centres, yticks=range(size))
        names = [short(label) for label in labels]
        ax.set_yticklabels([f"{name} ({total:,.0f})" for name, total in zip(names, totals[:, 0], strict=True)])
        ax.set_xticklabels([*names, "invalid"], rotation=0 if size < 10 and max(map(len, names)) < 10 else 60)
        ax.set_xlabel("answer")
        ax.set_ylabel("true label (samples)")
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        for row, column in np.ndindex(table.shape) if size <= 20 else ():
            _draw_cell(ax, (float(centres[column]), row), float(table[row, column]), float(shares[row, column]))

    return png(draw, side + 2.4, side * 0.8 + 1.2)


def _draw_cell(ax: Axes, position: tuple[float, float], count: float, share: float) -> None:
    colour = "white" if share > 0.55 else "#1c1f23" if count else "#a3a8b0"
    ax.text(*position, f"{count:,.0f}", ha="center", va="bottom" if count else "center", fontsize=10, color=colour)
    if count:
        ax.text(*position, f"{share:.1%}", ha="center", va="top", fontsize=7.5, color=colour)

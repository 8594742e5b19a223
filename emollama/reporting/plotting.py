"""Common parts of all plots: colours, style and rendering to PNG.

The colours are those of Okabe and Ito, which people with colour vision deficiency can tell apart.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY, QUIET = "#8a8f98", "#5c636d"
DPI = 160
WIDTH = 10.5  # inches of a full-width picture
STYLE = {
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": "#3c4148",
    "axes.edgecolor": "#b9bec6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.8,
    "xtick.color": "#3c4148",
    "ytick.color": "#3c4148",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "agg.path.chunksize": 20_000,
}


def png(draw: Callable[[Figure], None], width: float, height: float, top: float = 0.0) -> bytes:
    """Render a figure as a PNG, without a display and without the global state of pyplot.

    Args:
        draw: function that draws into the empty figure.
        width: width in inches.
        height: height in inches.
        top: inches that the layout leaves empty at the top.
    """
    with _styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - top / height), h_pad=0.1)  # type: ignore[union-attr, call-arg]
        draw(figure)
        return rendered(figure)


def rendered(figure: Figure) -> bytes:
    """Return a finished figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def integer_ticks(axis: Axis, most: int) -> None:
    """Set about ``most`` ticks at integers, or one tick if the axis shows a single number."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def log_scale(axes: Axes) -> None:
    """Set a logarithmic y axis with plain tick labels: the default labels are TeX, which :data:`STYLE` disables."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(LogFormatter())


def short(name: str, most: int = 24) -> str:
    """Return a name shortened to ``most`` characters."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - 1]}…"


@contextmanager
def _styled() -> Iterator[None]:
    """Apply the style regardless of the user's matplotlibrc, and silence warnings about glyphs that the font lacks."""
    import matplotlib.style

    with matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

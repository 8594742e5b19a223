"""No plot shows raw TeX: each text object of each plot of the package is inspected as it is drawn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from plots import plots, white_pixel

import emollama.reporting
from emollama.reporting.confusion import confusion_matrix
from emollama.reporting.curves import training_curves
from emollama.reporting.panels import Line, Panel, metric_panels
from emollama.run_folder import StepRecord

TEX = re.compile(r"\$|\\[a-z]+|\{|\}")


def curves(highest, lowest):
    """The curves of 60 steps whose norm and loss jump once from ``lowest`` to ``highest``, which makes both axes logarithmic."""
    values = np.linspace(1, 1.2, 60) * lowest
    values[7] = highest
    return training_curves([StepRecord(step, loss=v, grad_norm=v, lr=1e-5 * step) for step, v in enumerate(values)])


def panels(values):
    lines = [Line("one", list(enumerate(values))), Line("other", [], level=values[0])]
    return metric_panels([Panel("gradient", "block, task", better, lines) for better in (True, False, None)], best_epoch=1)


PLOTS = {
    "curves over many decades": lambda: curves(1e7, 1e-3),
    "curves over three decades": lambda: curves(2000, 3),
    "curves of tiny values": lambda: curves(1e-12, 1e-16),
    "linear curves": lambda: curves(1.0, 1.0),
    "panels": lambda: panels([0.1, 0.5, 0.3]),
    "panels of tiny values": lambda: panels([1e-12, 5e-12, 3e-12]),
    "panels of close values": lambda: panels([1e6 + 1, 1e6 + 2, 1e6 + 1.5]),
    "confusion": lambda: confusion_matrix(["happy", "sad"], [[3, 1, 0], [2, 40_000, 1]]),
}


@pytest.fixture
def drawn():
    """The rendered figures, which are laid out and drawn, but not converted to pixels."""
    figures = []

    def record(figure):
        figure.draw_without_rendering()
        figures.append(figure)
        return white_pixel(figure)

    with plots(record):
        yield figures


@pytest.mark.parametrize("name", PLOTS)
def test_no_text_of_a_plot_is_raw_tex(drawn, name):
    from matplotlib.text import Text

    assert PLOTS[name]()
    [figure] = drawn
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert len(texts) > 4
    assert [text for text in texts if TEX.search(text)] == []


def test_a_logarithmic_axis_has_labels_at_decades(drawn):
    assert curves(1e7, 1e-3)
    axes = [ax for ax in drawn[0].axes if ax.get_yscale() == "log"]
    assert len(axes) == 2
    for ax in axes:
        labels = {label.get_text() for label in ax.get_yticklabels()} - {""}
        assert len(labels) > 2
        assert all(np.isclose(np.log10(float(label)) % 1, [0, 1]).any() for label in labels)


def test_every_plotting_function_is_covered_by_these_tests():
    sources = [path.read_text(encoding="utf-8") for path in Path(emollama.reporting.__path__[0]).glob("*.py")]
    drawing = {name for text in sources for name in re.findall(r"^def (\w+)(?:(?!^def ).)*?return png\(", text, re.M | re.S)}
    assert drawing == {"training_curves", "metric_panels", "confusion_matrix"}

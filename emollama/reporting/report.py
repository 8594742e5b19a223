"""``result/report.html``: a self-contained page about a run, with its plots as PNG files next to it."""

from __future__ import annotations

import functools
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.json_io import text
from emollama.logs.logger import get_logger
from emollama.paths import atomic_write
from emollama.reporting.curves import training_curves
from emollama.reporting.measures import (
    format_value,
    metric_digits,
    metric_title,
    registered_metric,
)
from emollama.reporting.panels import PANELS, Line, Panel, metric_panel, metric_panels
from emollama.reporting.run_files import RunFiles, best_validation, read_run
from emollama.reporting.run_summary import summary_rows, versions
from emollama.reporting.sections import picture, report_sections
from emollama.run_folder import RESULT

NAME = "report.html"
LIMITS = {"invalid": 100, "failures": 50, "panels": PANELS}  # maximum numbers; the first two for each task
CHARACTERS = 1500  # shown of a text
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # invalid or invisible in HTML


def write_report(folder: Path) -> Path:
    """Write ``result/report.html`` and ``result/plots/*.png`` from the files of a run.

    Missing files are left out; the report lists files that are invalid.

    Args:
        folder: the run's folder.

    Returns:
        The path of the page.

    Raises:
        UserError: If the folder is not a run's folder, or the files cannot be written.
    """
    run = read_run(folder)
    best = best_validation(run.validations)
    curves = training_curves(run.steps)
    panels = metric_panels(panels_by_epoch(run), best.epoch if best else None)
    training = picture("training.png", curves, "Loss, learning rate and gradient norm by step")
    epochs = picture("metrics_by_epoch.png", panels, "Each metric by epoch, with a ring around the best epoch")
    sections = report_sections(run)
    page = _template().render(
        run=run,
        title=folder.resolve().name,
        summary=list(summary_rows(run)),
        best=best,
        keys=_keys(run),
        training=training,
        epochs=epochs,
        sections=sections,
        versions=list(versions()),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        limits=LIMITS,
    )
    pictures = [plot for plot in (training, epochs, *(section.confusion for section in sections)) if plot]
    return _write(folder / RESULT, page, {plot.file: plot.png for plot in pictures})


def write_report_if_possible(folder: Path) -> Path | None:
    """Write the report of a run. Returns its path, or None after an error, which is logged as a warning."""
    try:
        return write_report(folder)
    except Exception as error:
        # A run of several days must not fail because a chart cannot be drawn.
        text = "cannot write the report: %s: %s. Try again with: emollama report %s"
        get_logger().warning(text, type(error).__name__, error, shlex.quote(str(folder)))
        return None


def panels_by_epoch(run: RunFiles) -> list[Panel]:
    """Return one panel for each metric of a run's validations."""
    panels = []
    for key in _keys(run):
        points = [(record.epoch, value) for record in run.validations if (value := record.metrics.get(key)) is not None]
        panels.append(metric_panel(key, [Line("", points)]))
    return panels


def _keys(run: RunFiles) -> list[str]:
    return list(dict.fromkeys(key for validation in run.validations for key in validation.metrics))


def _write(folder: Path, page: str, pictures: dict[str, bytes]) -> Path:
    try:
        for name, png in pictures.items():
            with atomic_write(folder / "plots" / name, "wb") as file:
                file.write(png)
        with atomic_write(folder / NAME) as file:
            file.write(page)
    except OSError as error:
        what = remedy(error, "copy the run to another disk")
        raise UserError(f"cannot write '{folder / NAME}': {error.strerror}. {what}") from None
    return folder / NAME


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("emollama.reporting", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "clean": _clean,
        "cut": _cut,
        "format_value": format_value,
        "registered_metric": registered_metric,
        "metric_title": metric_title,
        "metric_digits": metric_digits,
    }
    return environment.get_template("report.html.j2")


def _clean(value: Any) -> str:
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text(value))


def _cut(value: Any, most: int = CHARACTERS) -> str:
    """Return a text, shortened to ``most`` characters."""
    whole = text(value)
    return _clean(whole if len(whole) <= most else f"{whole[:most]} … ({len(whole) - most:,} more characters)")

"""``result/report.html``: a run at a glance in one file that needs nothing else, and its plots as PNG beside it."""

from __future__ import annotations

import functools
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.paths import atomic_write
from emollama.reporting.configuration import RESULT
from emollama.reporting.curves import training_curves
from emollama.reporting.json_io import text
from emollama.reporting.measures import block_and_task, digits_of, figure, higher_is_better, registered_metric, title_of
from emollama.reporting.panels import PANELS, Line, Panel, metric_panels
from emollama.reporting.run_files import RunFiles, best_validation, read_run
from emollama.reporting.run_summary import summary_rows, versions
from emollama.reporting.sections import picture, sections_of

NAME = "report.html"
LIMITS = {"invalid": 100, "failures": 50, "panels": PANELS}  # of what is shown; the first two of each task
CHARACTERS = 1500  # that are shown of a text
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # what an HTML file must not hold, or shows nothing


def write_report(folder: Path) -> Path:
    """Write ``result/report.html`` and ``result/plots/*.png`` from the files of a run.

    What is missing or spoilt among them is left out, and told in the report.

    Raises:
        UserError: no run's folder, or nothing can be written there.
    """
    run = read_run(folder)
    best = best_validation(run.validations)
    curves = training_curves(run.steps)
    panels = metric_panels(panels_by_epoch(run), best.epoch if best else None)
    training = picture("training.png", curves, "Loss, learning rate and gradient norm by step")
    epochs = picture("metrics_by_epoch.png", panels, "Each metric by epoch, its best epoch ringed")
    sections = sections_of(run)
    page = _template().render(
        run=run,
        title=folder.resolve().name,
        facts=list(summary_rows(run)),
        best=best,
        keys=_keys(run),
        training=training,
        epochs=epochs,
        sections=sections,
        versions=list(versions()),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        limits=LIMITS,
    )
    pictures = [found for found in (training, epochs, *(section.confusion for section in sections)) if found]
    return _write(folder / RESULT, page, {found.file: found.png for found in pictures})


def panels_by_epoch(run: RunFiles) -> list[Panel]:
    """A panel a metric of a run's validations."""
    panels = []
    for key in _keys(run):
        name = key.rpartition("/")[2]
        points = [(found.epoch, value) for found in run.validations if (value := found.metrics.get(key)) is not None]
        panels.append(Panel(title_of(name), block_and_task(key), higher_is_better(name), [Line("", points)]))
    return panels


def _keys(run: RunFiles) -> list[str]:
    return list(dict.fromkeys(key for found in run.validations for key in found.metrics))


def _write(place: Path, page: str, pictures: dict[str, bytes]) -> Path:
    try:
        for name, png in pictures.items():
            with atomic_write(place / "plots" / name, "wb") as file:
                file.write(png)
        with atomic_write(place / NAME) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"cannot write '{place / NAME}': {error.strerror}. Make room, or copy the run elsewhere.") from None
    return place / NAME


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("emollama.reporting", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "clean": _clean,
        "cut": _cut,
        "figure": figure,
        "known": registered_metric,
        "title_of": title_of,
        "digits_of": digits_of,
    }
    return environment.get_template("report.html.j2")


def _clean(value: Any) -> str:
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text(value))


def _cut(value: Any, most: int = CHARACTERS) -> str:
    """A text, shortened where it is long."""
    whole = text(value)
    return _clean(whole if len(whole) <= most else f"{whole[:most]} … ({len(whole) - most:,} more characters)")

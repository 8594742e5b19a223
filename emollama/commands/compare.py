"""``emollama compare``: runs side by side: a table of their figures, the settings that differ, a chart of metrics by epoch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emollama.logs.console import aligned, write

if TYPE_CHECKING:
    from emollama.reporting.comparison import RunComparison

HELP = "compare runs: metrics, settings that differ, and a chart of metrics by epoch"
EXAMPLE = "emollama compare checkpoints/run_a checkpoints/run_b"
DOCS = "docs/evaluation.md#the-report"
SETTING = 40  # characters of a setting that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders, ``--metric``, ``--output``, ``--json``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="a run's folder, output_dir/<job_id>")
    parser.add_argument("--metric", action="append", default=[], help="only this metric; may be repeated (default: all)")
    parser.add_argument("--output", type=Path, default=Path("compare.png"), help="the chart (default: compare.png)")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of tables")


def run(arguments: argparse.Namespace) -> None:
    """Print the comparison, and write the chart where there is anything to compare."""
    from emollama.errors import UserError
    from emollama.paths import atomic_write, require_writable
    from emollama.reporting.comparison import compared, panels_of
    from emollama.reporting.panels import PANELS, metric_panels

    output = arguments.output
    if output.suffix.lower() != ".png" or output.is_dir():
        raise UserError(f"--output: '{output}' is to be the name of a picture, such as compare.png")
    require_writable(output.parent, "--output")
    comparison = compared(arguments.runs, arguments.metric)
    panels = panels_of(comparison)
    chart = metric_panels(panels)
    if chart:
        with atomic_write(output, "wb") as file:
            file.write(chart)
    if len(panels) > PANELS:
        comparison.notes.append(f"the chart shows {PANELS} of {len(panels)} metrics; choose with --metric")
    written = str(output) if chart else None
    if arguments.json:
        text = json.dumps(_plain(comparison, written), indent=1, ensure_ascii=False, default=str) + "\n"
    else:
        text = "".join(f"{line}\n" for line in _lines(comparison, written))
    write(text)


def _plain(comparison: RunComparison, chart: str | None) -> dict[str, Any]:
    """Everything as JSON has it."""
    return {
        "runs": {name: str(found.folder) for name, found in comparison.runs.items()},
        "standings": [
            {
                "run": found.run,
                "of": found.of,
                "epoch": found.epoch,
                "checkpoint": found.checkpoint or None,
                "metrics": {key: found.metrics.get(key) for key in comparison.keys},
            }
            for found in comparison.standings
        ],
        "by_epoch": {
            key: {
                name: [[one.epoch, one.metrics[key]] for one in found.validations if key in one.metrics]
                for name, found in comparison.runs.items()
            }
            for key in comparison.keys
        },
        "settings": comparison.settings,
        "notes": comparison.notes,
        "chart": chart,
    }


def _lines(comparison: RunComparison, chart: str | None) -> Iterator[str]:
    """Tables of figures, a table of settings, notes, the chart's file."""
    for place in dict.fromkeys(key.rpartition("/")[0] for key in comparison.keys):
        keys = [key for key in comparison.keys if key.rpartition("/")[0] == place]
        head, *rows = _figures(comparison, keys)
        if rows:
            yield f"{place.rstrip('/')} (* the best of a column)"
            yield from (f"  {line}" for line in aligned([head, *rows], left=range(len(head))))
            yield ""
    if comparison.settings:
        names = list(comparison.runs)
        rows = [[key, *(_setting(values, name) for name in names)] for key, values in comparison.settings.items()]
        yield "Settings that differ"
        yield from (f"  {line}" for line in aligned([["", *names], *rows]))
        yield ""
    yield from (f"note: {note}" for note in comparison.notes)
    yield f"chart: {chart}" if chart else "no chart: there is nothing to compare"


def _figures(comparison: RunComparison, keys: list[str]) -> Iterator[list[str]]:
    """A row a standing with any of the metrics, a column a metric."""
    from emollama.reporting.comparison import leaders
    from emollama.reporting.measures import digits_of, figure

    names = [key.rpartition("/")[2] for key in keys]
    best = {key: leaders(comparison, key) for key in keys}
    yield ["run", "figures", "epoch", *names]
    for found in comparison.standings:
        if all(found.metrics.get(key) is None for key in keys):
            continue
        cells = []
        for key, name in zip(keys, names, strict=True):
            value = found.metrics.get(key)
            cells.append((figure(value, digits_of(name)) if value is not None else "-") + ("*" if found in best[key] else ""))
        yield [found.run, found.of, "-" if found.epoch is None else str(found.epoch), *cells]


def _setting(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "-"
    value = values[name]
    if isinstance(value, dict) and value:
        return f"({len(value)} key{'s' * (len(value) > 1)})"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SETTING else f"{text[: SETTING // 2]}…{text[-SETTING // 2 + 1 :]}"

"""Compare runs: print a table of metrics and the settings that differ, and write a chart of the metrics by epoch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emollama.commands.arguments import add_imports, import_modules
from emollama.logs.console import aligned, write

if TYPE_CHECKING:
    from emollama.reporting.comparison import RunComparison

HELP = "compare runs: metrics, settings that differ, and a chart of metrics by epoch"
EXAMPLE = "emollama compare checkpoints/run_a checkpoints/run_b"
DOCS = "docs/evaluation.md#the-report"
SETTING = 40  # maximum number of characters of a printed setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run folders, ``--metric``, ``--output``, ``--json`` and ``--imports``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folder of a run, output_dir/<job_id>")
    metric = "compare only this metric; the option can be repeated (default: all metrics)"
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help=metric)
    chart = "PNG file of the chart (default: compare.png)"
    parser.add_argument("--output", type=Path, default=Path("compare.png"), metavar="FILE", help=chart)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of tables")
    add_imports(parser, "metrics of the runs", repeated=True)


def run(arguments: argparse.Namespace) -> None:
    """Print the comparison, and write the chart if there are metrics to compare."""
    from emollama.errors import UserError
    from emollama.paths import atomic_write, require_writable
    from emollama.reporting.comparison import compare_runs, comparison_panels
    from emollama.reporting.panels import PANELS, metric_panels

    import_modules(arguments)
    output = arguments.output
    if output.suffix.lower() != ".png" or output.is_dir():
        raise UserError(f"--output: '{output}' must be the name of a .png file, such as compare.png.")
    require_writable(output.parent, "--output")
    comparison = compare_runs(arguments.runs, arguments.metric)
    panels = comparison_panels(comparison)
    chart = metric_panels(panels)
    if chart:
        with atomic_write(output, "wb") as file:
            file.write(chart)
    if len(panels) > PANELS:
        comparison.notes.append(f"the chart shows {PANELS} of {len(panels)} metrics; select metrics with --metric")
    chart_path = str(output) if chart else None
    if arguments.json:
        text = json.dumps(_plain(comparison, chart_path), indent=1, ensure_ascii=False, default=str) + "\n"
    else:
        text = "".join(f"{line}\n" for line in _lines(comparison, chart_path))
    write(text)


def _plain(comparison: RunComparison, chart: str | None) -> dict[str, Any]:
    """Return the content of the JSON output."""
    return {
        "runs": {name: str(run_data.folder) for name, run_data in comparison.runs.items()},
        "standings": [
            {
                "run": standing.run,
                "of": standing.source,
                "epoch": standing.epoch,
                "checkpoint": standing.checkpoint or None,
                "metrics": {key: standing.metrics.get(key) for key in comparison.keys},
            }
            for standing in comparison.standings
        ],
        "by_epoch": {
            key: {
                name: [
                    [validation.epoch, validation.metrics[key]]
                    for validation in run_data.validations
                    if key in validation.metrics
                ]
                for name, run_data in comparison.runs.items()
            }
            for key in comparison.keys
        },
        "settings": comparison.settings,
        "notes": comparison.notes,
        "chart": chart,
    }


def _lines(comparison: RunComparison, chart: str | None) -> Iterator[str]:
    """Yield the lines of the printed comparison: metrics, settings that differ, notes and the file of the chart."""
    from emollama.reporting.comparison import SUBJECT, comparison_values
    from emollama.reporting.metric_table import tables

    yield from (*tables(SUBJECT, comparison_values(comparison)), "")
    if comparison.settings:
        names = list(comparison.runs)
        rows = [[key, *(_setting(values, name) for name in names)] for key, values in comparison.settings.items()]
        yield "Settings that differ"
        yield from (f"  {line}" for line in aligned([["", *names], *rows]))
        yield ""
    yield from (f"note: {note}" for note in comparison.notes)
    yield f"chart: {chart}" if chart else "no chart: there are no metrics to compare"


def _setting(values: dict[str, Any], name: str) -> str:
    """Return the printed value of a setting in one run, "-" if the run does not have it."""
    if name not in values:
        return "-"
    value = values[name]
    if isinstance(value, dict) and value:
        return f"({len(value)} key{'s' * (len(value) > 1)})"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SETTING else f"{text[: SETTING // 2]}…{text[-SETTING // 2 + 1 :]}"

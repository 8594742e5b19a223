"""``emollama report``: result/report.html of runs, written again from the files in their folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from emollama.logs.console import write_plain

HELP = "write result/report.html of a run: curves, scores, sample answers, configuration"
EXAMPLE = "emollama report checkpoints/run"
DOCS = "docs/evaluation.md#the-report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="a run's folder, output_dir/<job_id>")


def run(arguments: argparse.Namespace) -> None:
    """Write each report, and print where it is. Nothing is written unless all of them are folders of runs."""
    from emollama.reporting.report import write_report
    from emollama.reporting.run_files import require_run

    for folder in arguments.runs:
        require_run(folder)
    for folder in arguments.runs:
        write_plain(f"{write_report(folder)}\n")

"""Write the report of each run, result/report.html, from the files in its folder.

A training run writes its report itself. This command writes it again, for example after an evaluation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from emollama.commands.arguments import add_imports, import_modules
from emollama.logs.console import write_plain

HELP = "write the HTML report of a run: curves, scores, sample answers and configuration"
EXAMPLE = "emollama report checkpoints/run"
DOCS = "docs/evaluation.md#the-report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run folders and ``--imports``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folder of a run, output_dir/<job_id>")
    add_imports(parser, "metrics of the runs", repeated=True)


def run(arguments: argparse.Namespace) -> None:
    """Write the reports and print their paths. If a folder is not a run, nothing is written."""
    from emollama.reporting.report import write_report
    from emollama.reporting.run_files import require_run

    import_modules(arguments)
    for folder in arguments.runs:
        require_run(folder)
    for folder in arguments.runs:
        write_plain(f"{write_report(folder)}\n")

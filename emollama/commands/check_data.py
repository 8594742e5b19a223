"""Check all data of a configuration before training or evaluation: samples, captions, transcripts and features.

The report contains problems, which should be fixed before a run, and notes about unusual data. The exit status is 1 if there are
problems.
"""

from __future__ import annotations

import argparse
import json

from emollama.commands.arguments import add_run_arguments
from emollama.logs.console import write

HELP = "check the samples, captions, transcripts and features of a configuration"
EXAMPLE = "emollama check-data --cfg-path train_configs/custom.yaml"
DOCS = "docs/data.md#check-before-you-train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path``, ``--options``, ``--deep`` and ``--json``."""
    add_run_arguments(parser)
    deep = "also read every array and compare it with the digest that was recorded when it was written"
    parser.add_argument("--deep", action="store_true", help=deep)
    parser.add_argument("--json", action="store_true", help="print a JSON object, which names all clips, instead of tables")


def run(arguments: argparse.Namespace) -> None:
    """Print the report and exit with status 1 if there are problems."""
    from emollama.checks.check_data import check
    from emollama.checks.report import text_of
    from emollama.config import load

    report = check(load(arguments.cfg_path, arguments.options), deep=arguments.deep)
    text = json.dumps(report.plain(), indent=1) + "\n" if arguments.json else text_of(report)
    write(text)
    if report.of_level("problem"):
        raise SystemExit(1)

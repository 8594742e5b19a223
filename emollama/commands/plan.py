"""Estimate the parameters, memory and tokens of a run, without loading weights or data."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from emollama.commands.arguments import add_run_arguments
from emollama.logs.console import write

HELP = "estimate parameters, memory and tokens of a run, without loading weights or data"
EXAMPLE = "emollama plan --cfg-path train_configs/custom.yaml"
DOCS = "README.md#train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path``, ``--options`` and ``--json``."""
    add_run_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of tables")


def run(arguments: argparse.Namespace) -> None:
    """Print the plan."""
    from emollama.config import load
    from emollama.planning import plan

    result = plan(load(arguments.cfg_path, arguments.options))
    write(json.dumps(asdict(result), indent=2) + "\n" if arguments.json else result.text() + "\n")

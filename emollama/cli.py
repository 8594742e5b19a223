"""Command lines: what the entry scripts share, and ``python -m emollama <command>``."""

from __future__ import annotations

import argparse
import importlib

from emollama.commands.arguments import add_run_arguments
from emollama.entry import entry_point

__all__ = ["entry_point", "main", "parse_run"]


def parse_run(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """``--cfg-path`` and ``--options``, as every command that reads a configuration takes them."""
    parser = argparse.ArgumentParser(description=description)
    add_run_arguments(parser)
    return parser.parse_args(arguments)


COMMANDS = (
    "train",
    "plan",
    "check_data",
    "config",
    "importing",
    "prepare",
    "extract",
    "pack",
    "checkpoint",
    "eval",
    "sweep",
    "predict",
    "score",
    "rate",
    "submission",
    "report",
    "compare",
    "demo",
    "reference",
)


def main() -> None:
    """``emollama <command>``."""
    parser = argparse.ArgumentParser(prog="emollama", description="Tools around training and evaluation.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"emollama.commands.{name}")
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    entry_point(lambda: arguments.run(arguments))

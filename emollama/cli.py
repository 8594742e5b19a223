"""The command line ``emollama <command>``, and that of the entry scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from emollama.commands.arguments import add_dry_run, add_output_options, add_run_arguments, apply_output_options
from emollama.commands.parser import Parser, parse
from emollama.entry import entry_point, run

__all__ = ["entry_point", "main", "parse_run"]


def parse_run(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of an entry script, and apply ``--quiet``, ``--verbose`` and ``--debug``.

    The scripts run in a single process, or as workers of torchrun.
    """
    parser = Parser(description=description)
    add_run_arguments(parser)
    add_dry_run(parser)
    add_output_options(parser)
    parser.set_defaults(nproc=1, gpus=None, master_port=None, argv=None)
    parsed: argparse.Namespace = parser.parse_args(arguments)
    apply_output_options(parsed)
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``emollama <command>``.

    Args:
        argv: the command line without the program's name. If None, it is that of this process, which then ends at once if the
            command failed or joined a process group.

    Raises:
        SystemExit: If ``argv`` is passed and the command failed; its code is the exit status.
    """

    def command() -> None:
        arguments = parse(sys.argv[1:] if argv is None else list(argv))
        apply_output_options(arguments)
        if argv is not None and hasattr(arguments, "argv"):
            arguments.argv = list(argv)
        arguments.run(arguments)

    if argv is None:
        entry_point(command)
    elif status := run(command):
        raise SystemExit(status)

"""Command lines: what the entry scripts share, and ``python -m emollama <command>``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from emollama import distributed
from emollama.commands.arguments import add_run_arguments
from emollama.errors import EchoedError, UserError

SPEAKER_FIRST = 3.0  # seconds that a silent process waits, so that the launcher does not end the one that speaks


def parse_run(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """``--cfg-path`` and ``--options``, as every command that reads a configuration takes them."""
    parser = argparse.ArgumentParser(description=description)
    add_run_arguments(parser)
    return parser.parse_args(arguments)


def entry_point(main: Callable[[], None], *, when_interrupted: str = "interrupted") -> None:
    """Run; an error that is meant for the user is printed without a traceback, once, and exits with 1.

    With several processes each leaves at once, a failing one without waiting for the others in the group's clean-up.
    """
    try:
        main()
    except UserError as error:
        every_rank_has_it = not distributed.joined() and int(os.environ.get("LOCAL_RANK", 0)) > 0
        if isinstance(error, EchoedError) or every_rank_has_it:
            time.sleep(SPEAKER_FIRST)
        else:
            sys.stderr.write(f"error: {error}\n")
        _leave(1)
    except KeyboardInterrupt as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            sys.stderr.write(f"{str(stopped) or when_interrupted}\n")
        _leave(130)
    except Exception:
        if not distributed.joined():
            raise
        traceback.print_exc()
        _leave(1)
    if distributed.joined():
        distributed.stop()
        _leave(0)  # at once: threads of the libraries now and then abort the interpreter's clean-up of a finished process


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


COMMANDS = (
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

"""Command lines: what the entry scripts share, and ``python -m emollama <command>``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from emollama import distributed
from emollama.errors import EchoedError, UserError


def parse_run(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """``--cfg-path`` and ``--options``, as every command that reads a configuration takes them."""
    parser = argparse.ArgumentParser(description=description)
    add_run_arguments(parser)
    return parser.parse_args(arguments)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path`` and ``--options`` to a parser."""
    parser.add_argument("--cfg-path", required=True, help="the YAML configuration")
    parser.add_argument("--options", nargs="*", default=[], metavar="a.b=c", help="values that override the YAML's")


def entry_point(main: Callable[[], None]) -> None:
    """Run; an error that is meant for the user is printed without a traceback, once, and exits with 1."""
    try:
        main()
    except UserError as error:
        silent = isinstance(error, EchoedError) or (not distributed.joined() and int(os.environ.get("RANK", 0)) > 0)
        if not silent:
            sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(1) if distributed.joined() else sys.exit(1)
    finally:
        distributed.stop()

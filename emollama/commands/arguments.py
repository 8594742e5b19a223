"""Arguments that several commands and the entry scripts share."""

from __future__ import annotations

import argparse


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path`` and ``--options`` to a parser."""
    parser.add_argument("--cfg-path", required=True, help="the YAML configuration")
    parser.add_argument("--options", nargs="*", default=[], metavar="a.b=c", help="values that override the YAML's")

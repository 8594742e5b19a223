"""Describe a configuration key or the keys of a block; without one, print the reference of all keys as Markdown."""

from __future__ import annotations

import argparse

from emollama.logs.console import write_plain

HELP = "describe a configuration key, or print the reference of all keys as Markdown"
EXAMPLE = "emollama reference run.metric"
DOCS = "docs/configuration.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the key."""
    key = "a key, such as run.metric or batch_size, or a block, such as run (default: print docs/configuration.md)"
    parser.add_argument("key", nargs="?", metavar="KEY", help=key)


def run(arguments: argparse.Namespace) -> None:
    """Print the reference, or the description of a key."""
    from emollama.config.reference import describe, markdown

    write_plain(markdown() if arguments.key is None else describe(arguments.key))

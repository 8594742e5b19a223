"""``emollama reference``: every configuration key as Markdown (docs/configuration.md), those of one block, or one key."""

from __future__ import annotations

import argparse

from emollama.logs.console import write_plain

HELP = "describe one configuration key, or print all of them as Markdown"
EXAMPLE = "emollama reference run.metric"
DOCS = "docs/configuration.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The key."""
    key = "such as run.metric, datasets.batch_size or batch_size; or a block, such as run (default: print all keys as Markdown)"
    parser.add_argument("key", nargs="?", metavar="KEY", help=key)


def run(arguments: argparse.Namespace) -> None:
    """Print the Markdown, or the key."""
    from emollama.config.reference import describe, markdown

    write_plain(markdown() if arguments.key is None else describe(arguments.key))

"""``emollama reference``: docs/configuration.md, made from the code."""

from __future__ import annotations

import argparse
import sys

NAME = "reference"
HELP = "every configuration key with its default, as Markdown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(arguments: argparse.Namespace) -> None:
    """Print the Markdown."""
    from emollama.reference import markdown

    sys.stdout.write(markdown())

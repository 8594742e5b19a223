"""``emollama extract``: videos -> the arrays that datasets read; alone, or by many processes under torchrun."""

from __future__ import annotations

import argparse

from emollama.commands.arguments import add_run_arguments

NAME = "extract"
HELP = "videos into features, by the encoders of a configuration; goes on where it was stopped"
EXAMPLE = "emollama extract --cfg-path train_configs/demo_videos.yaml"
DOCS = "docs/extraction.md#extract"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cfg-path``, ``--options``."""
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Extract what is left to do; says what was done and what failed."""
    from emollama.config import load
    from emollama.errors import UserError

    config = load(arguments.cfg_path, arguments.options, needs_model=False)
    if config.extraction is None:
        raise UserError(f"{arguments.cfg_path}: no 'extraction' block. Add one: {{videos: FOLDER, output: FOLDER}}")
    extraction = config.classes["extraction"](config)
    try:
        extraction.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from here") from None

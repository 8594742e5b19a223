"""``emollama eval``: answer the evaluation blocks of a YAML file and score the answers; eval_emotion_EMER.py is the same."""

from __future__ import annotations

import argparse

from emollama.commands.arguments import add_run_arguments

NAME = "eval"
HELP = "answer the blocks under evaluation_datasets, and score the answers; alone or under torchrun"
EXAMPLE = "emollama eval --cfg-path eval_configs/eval_emotion_EMER.yaml"
DOCS = "README.md#evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cfg-path``, ``--options``."""
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Configuration -> runner -> evaluate; says what was written."""
    from emollama.config import load
    from emollama.logging import get_logger

    config = load(arguments.cfg_path, arguments.options)
    for path in config.classes["run"](config, training=False).evaluate():
        get_logger().info("wrote %s", path)

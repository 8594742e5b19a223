"""Train the model of a configuration, in one or several processes. ``torchrun train.py`` does the same."""

from __future__ import annotations

import argparse

from emollama.commands.running import add_arguments, run_model

__all__ = ["add_arguments"]
HELP = "train a model in one or several processes"
EXAMPLE = "emollama train --cfg-path train_configs/custom.yaml"
DOCS = "README.md#train"


def run(arguments: argparse.Namespace) -> None:
    """Train, or evaluate if ``run.evaluate_only`` is set; with ``--dry-run``, only check the configuration."""
    run_model(arguments, evaluate=False)

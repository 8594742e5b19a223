"""``emollama train``: train the model of a YAML file, in one process or in several; train.py does the same under torchrun."""

from __future__ import annotations

import argparse

from emollama.commands.running import add_arguments, run_model

__all__ = ["add_arguments"]
HELP = "train a model, in one process or in several"
EXAMPLE = "emollama train --cfg-path train_configs/custom.yaml"
DOCS = "README.md#train"


def run(arguments: argparse.Namespace) -> None:
    """Train, or evaluate if ``run.evaluate_only`` says so; or only check, with ``--dry-run``."""
    run_model(arguments, evaluate=False)

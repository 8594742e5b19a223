"""Evaluate a model on the blocks under evaluation_datasets, in one or several processes.

The command writes the answers and their metrics. ``torchrun eval_emotion_EMER.py`` does the same.
"""

from __future__ import annotations

import argparse

from emollama.commands.running import add_arguments, run_model

__all__ = ["add_arguments"]
HELP = "evaluate a model on the blocks under evaluation_datasets: write answers and metrics"
EXAMPLE = "emollama eval --cfg-path eval_configs/eval_emotion_EMER.yaml"
DOCS = "README.md#evaluate"


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and log the written files; with ``--dry-run``, only check the configuration."""
    run_model(arguments, evaluate=True)

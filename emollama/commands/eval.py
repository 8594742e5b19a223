"""``emollama eval``: answer the evaluation blocks of a YAML file and score the answers; eval_emotion_EMER.py is the same."""

from __future__ import annotations

import argparse

from emollama.commands.running import add_arguments, run_model

__all__ = ["add_arguments"]
HELP = "answer the blocks under evaluation_datasets and score the answers, in one process or in several"
EXAMPLE = "emollama eval --cfg-path eval_configs/eval_emotion_EMER.yaml"
DOCS = "README.md#evaluate"


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, and log which files were written; or only check, with ``--dry-run``."""
    run_model(arguments, evaluate=True)

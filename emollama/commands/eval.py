"""``emollama eval``: answer the evaluation blocks of a YAML file and score the answers; eval_emotion_EMER.py is the same."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emollama.commands.arguments import add_dry_run, add_run_arguments
from emollama.launcher import add_launch_arguments, launch, processes_for

HELP = "answer the blocks under evaluation_datasets and score the answers, in one process or in several"
EXAMPLE = "emollama eval --cfg-path eval_configs/eval_emotion_EMER.yaml"
DOCS = "README.md#evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cfg-path``, ``--options``, ``--dry-run``, and those of the launcher."""
    add_run_arguments(parser)
    add_dry_run(parser)
    add_launch_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, and log which files were written; or only check, with ``--dry-run``."""
    from emollama.config import load
    from emollama.paths import require_writable

    config = load(arguments.cfg_path, arguments.options)
    processes = processes_for(arguments, config.run.device)
    if arguments.dry_run:
        from emollama.doctor.dry_run import dry_run

        sys.stdout.write(dry_run(config, training=False, processes=processes))
        return
    if processes > 1:
        require_writable(Path(config.run.output_dir), "run.output_dir")  # before the processes take seconds to start
        launch(arguments, processes)
        return
    from emollama.logging import get_logger

    for path in config.classes["run"](config, training=False).evaluate():
        get_logger().info("wrote %s", path)

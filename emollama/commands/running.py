"""What ``emollama train`` and ``emollama eval`` share: their arguments, ``--dry-run``, and one process or several."""

from __future__ import annotations

import argparse
from pathlib import Path

from emollama.commands.arguments import add_dry_run, add_run_arguments
from emollama.console import write
from emollama.launcher import add_launch_arguments, launch, processes_for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cfg-path``, ``--options``, ``--dry-run``, and those of the launcher."""
    add_run_arguments(parser)
    add_dry_run(parser)
    add_launch_arguments(parser)


def run_model(arguments: argparse.Namespace, *, evaluate: bool, when_interrupted: str = "interrupted") -> None:
    """Train or evaluate, in this process or in several; or only check, with ``--dry-run``.

    Args:
        arguments: those of :func:`add_arguments`.
        evaluate: evaluate even if ``run.evaluate_only`` is False.
        when_interrupted: printed by the launcher if a signal ends the run.
    """
    from emollama.config import load
    from emollama.logging import get_logger
    from emollama.paths import require_writable

    config = load(arguments.cfg_path, arguments.options)
    training = not (evaluate or config.run.evaluate_only)
    processes = processes_for(arguments, config.run.device)
    if arguments.dry_run:
        from emollama.doctor.dry_run import dry_run

        write(dry_run(config, training=training, processes=processes))
        return
    if processes > 1:
        require_writable(Path(config.run.output_dir), "run.output_dir")  # before the processes take seconds to start
        launch(arguments, processes, when_interrupted=when_interrupted)
        return
    runner = config.classes["run"](config, training=training)
    if training:
        runner.train()
        return
    for path in runner.evaluate():
        get_logger().info("wrote %s", path)

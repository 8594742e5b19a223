"""``emollama train``: train the model of a YAML file, in one process or in several; train.py does the same under torchrun."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emollama.commands.arguments import add_dry_run, add_run_arguments
from emollama.launcher import add_launch_arguments, launch, processes_for

HELP = "train a model, in one process or in several"
EXAMPLE = "emollama train --cfg-path train_configs/custom.yaml"
DOCS = "README.md#train"
WHEN_INTERRUPTED = "interrupted; a run that saved a checkpoint resumes with run.job_id and run.resume_ckpt_path: auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cfg-path``, ``--options``, ``--dry-run``, and those of the launcher."""
    add_run_arguments(parser)
    add_dry_run(parser)
    add_launch_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train, or evaluate if ``run.evaluate_only`` says so; or only check, with ``--dry-run``."""
    from emollama.config import load
    from emollama.paths import require_writable

    config = load(arguments.cfg_path, arguments.options)
    training = not config.run.evaluate_only
    processes = processes_for(arguments, config.run.device)
    if arguments.dry_run:
        from emollama.doctor.dry_run import dry_run

        sys.stdout.write(dry_run(config, training=training, processes=processes))
        return
    if processes > 1:
        require_writable(Path(config.run.output_dir), "run.output_dir")  # before the processes take seconds to start
        launch(arguments, processes, when_interrupted=WHEN_INTERRUPTED)
        return
    runner = config.classes["run"](config, training=training)
    _ = runner.train() if training else runner.evaluate()

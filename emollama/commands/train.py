"""``emollama train``: train the model of a YAML file, in one process or in several; train.py is the same, for torchrun."""

from __future__ import annotations

import argparse
from pathlib import Path

from emollama.commands.arguments import add_run_arguments
from emollama.launcher import add_launch_arguments, launched

NAME = "train"
HELP = "train a model, in one process or in several"
EXAMPLE = "emollama train --cfg-path train_configs/custom.yaml"
DOCS = "README.md#train"
WHEN_INTERRUPTED = "interrupted; a run that saved a checkpoint resumes with run.job_id and run.resume_ckpt_path: auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cfg-path``, ``--options``, ``--nproc`` or ``--gpus``, ``--master-port``."""
    add_run_arguments(parser)
    add_launch_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Configuration -> processes -> runner -> train, or evaluate if ``run.evaluate_only`` says so."""
    from emollama.config import load
    from emollama.paths import require_writable

    config = load(arguments.cfg_path, arguments.options)
    require_writable(Path(config.run.output_dir), "run.output_dir")
    if launched(arguments, config.run.device, when_interrupted=WHEN_INTERRUPTED):
        return
    only_evaluate = config.run.evaluate_only
    runner = config.classes["run"](config, training=not only_evaluate)
    _ = runner.evaluate() if only_evaluate else runner.train()

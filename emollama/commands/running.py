"""The arguments of all commands that may start several processes, and the common part of ``emollama train`` and ``eval``."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from emollama.commands.arguments import add_dry_run, add_run_arguments
from emollama.distributed.launcher import add_launch_arguments, launch, processes_for
from emollama.errors import Interrupted
from emollama.logs.console import write
from emollama.variables import JOB_ID


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path``, ``--options``, ``--dry-run`` and the arguments of the launcher."""
    add_run_arguments(parser)
    add_dry_run(parser)
    add_launch_arguments(parser)


def run_model(arguments: argparse.Namespace, *, evaluate: bool) -> None:
    """Train or evaluate in this process or in worker processes; with ``--dry-run``, only check the configuration.

    Args:
        arguments: the arguments of :func:`add_arguments`.
        evaluate: evaluate even if ``run.evaluate_only`` is False.

    Raises:
        KeyboardInterrupt: If a signal stopped the run. For training, the message says how to resume it.
    """
    from emollama.config import load
    from emollama.logs.logger import get_logger
    from emollama.paths import require_writable
    from emollama.reporting.report import write_report_if_possible

    config = load(arguments.cfg_path, arguments.options)
    training = not (evaluate or config.run.evaluate_only)
    processes = processes_for(arguments, config.run.device)
    if arguments.dry_run:
        from emollama.checks.dry_run import dry_run

        write(dry_run(config, training=training, processes=processes))
        return
    with _resumable(config.run) if training else nullcontext():
        if processes > 1:
            # Checked before worker processes start, which takes seconds.
            require_writable(Path(config.run.output_dir), "run.output_dir")
            launch(arguments, processes)
            return
        runner = config.runner_class(config, training=training)
        if training:
            runner.train(write_report_if_possible)
            return
        for path in runner.evaluate(write_report_if_possible):
            get_logger().info("wrote %s", path)


@contextmanager
def _resumable(run: Any) -> Iterator[None]:
    """Choose the name of the run folder for this process and its workers; after an interrupt, say how to resume the run."""
    from emollama.paths import new_job_id

    before, job_id = os.environ.get(JOB_ID), run.job_id or new_job_id()
    os.environ[JOB_ID] = job_id
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(_when_interrupted(run, job_id), stopped.signal_number) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_when_interrupted(run, job_id)) from None
    finally:
        if before is None:
            del os.environ[JOB_ID]
        else:
            os.environ[JOB_ID] = before


def _when_interrupted(run: Any, job_id: str) -> str:
    """Return the message after an interrupt, with the options that resume the run if it has saved a checkpoint."""
    if not any(Path(run.output_dir, job_id).glob("checkpoint_*.pth")):
        return "interrupted; this run has not saved a checkpoint yet"
    options = [] if run.job_id else [f"run.job_id={job_id}"]
    if run.resume_ckpt_path != "auto":
        options.append("run.resume_ckpt_path=auto")
    if not options:
        return "interrupted; run the same command again to resume"
    return f"interrupted; to resume, run the same command with these values added to --options: {shlex.join(options)}"

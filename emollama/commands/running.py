"""The arguments of all commands that may start several processes, and the common part of ``emollama train`` and ``eval``."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emollama.commands.arguments import add_dry_run, add_run_arguments
from emollama.distributed.launcher import add_launch_arguments, launch, processes_for
from emollama.distributed.node_launch import NodeOptions, add_node_arguments, hide_warnings_of_torch
from emollama.distributed.stop_requests import STOP_REQUESTS
from emollama.distributed.watchdog import LOST_SHARE, watching
from emollama.distributed.worker_variables import integer, is_worker
from emollama.errors import Interrupted, NoProgress, Stopped, UserError
from emollama.folder_lock import new_run_folder, remove_if_empty
from emollama.logs.console import write
from emollama.paths import require_writable
from emollama.run_folder import RESULT
from emollama.variables import JOB_ID, STOP_AT

if TYPE_CHECKING:
    from emollama.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path``, ``--options``, ``--dry-run`` and the arguments of the launcher."""
    add_run_arguments(parser)
    add_dry_run(parser)
    add_launch_arguments(parser)
    add_node_arguments(parser)


def run_model(arguments: argparse.Namespace, *, evaluate: bool) -> None:
    """Train or evaluate in this process or in worker processes; with ``--dry-run``, only check the configuration.

    Args:
        arguments: the arguments of :func:`add_arguments`.
        evaluate: evaluate even if ``run.evaluate_only`` is False.

    Raises:
        KeyboardInterrupt: If a signal interrupted the run.
        Stopped: If the run stopped after SIGTERM, SIGUSR1 or ``run.stop_after_minutes``. Both messages say how to resume it.
    """
    # Handled from the start, because importing torch takes seconds.
    with STOP_REQUESTS.handled():
        _run_model(arguments, evaluate=evaluate)


def _run_model(arguments: argparse.Namespace, *, evaluate: bool) -> None:
    """Load the configuration, and run it or, with ``--dry-run``, check it."""
    from emollama.config import load

    config = load(arguments.cfg_path, arguments.options)
    training = not (evaluate or config.run.evaluate_only)
    nodes, stated = NodeOptions.of(arguments), arguments.nproc or arguments.gpus
    if nodes.several:
        hide_warnings_of_torch()
    # Counting the GPUs imports torch, so a stated number of processes is checked before.
    if stated and not arguments.dry_run:
        _require_start(config, stated, nodes, training=training)
    processes = processes_for(arguments, config.run.device)
    if not (stated or arguments.dry_run):
        _require_start(config, processes, nodes, training=training)
    require_names(config.run, nodes, training=training)
    if arguments.dry_run:
        from emollama.checks.dry_run import dry_run

        write(dry_run(config, training=training, processes=processes * nodes.most))
        return
    run_config(config, arguments, processes, training=training)


def _require_start(config: RunConfig, processes: int, nodes: NodeOptions, *, training: bool) -> None:
    """Check keys before torch is imported or processes are started, which takes many seconds.

    Args:
        config: the resolved configuration.
        processes: number of processes on this machine, if this is not one of them.
        nodes: how many machines there can be. The keys must allow one of these numbers.
        training: True to train, False to evaluate.
    """
    from emollama.runners.sharding_check import require_start

    numbers = [processes * number for number in range(nodes.least, nodes.most + 1)]
    if is_worker():
        numbers = [integer("WORLD_SIZE", 1)]
        if numbers[0] % integer("LOCAL_WORLD_SIZE", 1):
            return  # the nodes have different numbers of processes
    errors = []
    for number in numbers:
        try:
            return require_start(config, number, training=training)
        except UserError as error:
            errors.append(error)
    raise errors[-1]


def run_config(config: RunConfig, arguments: argparse.Namespace, processes: int, *, training: bool) -> Path:
    """Train or evaluate a loaded configuration in this process or in worker processes, inside ``STOP_REQUESTS.handled()``.

    Args:
        config: the resolved configuration.
        arguments: the arguments of :func:`add_arguments`, for worker processes, which load the configuration again.
        processes: number of processes on this machine.
        training: True to train, False to evaluate.

    Returns:
        The run's folder.

    Raises:
        KeyboardInterrupt: As :func:`run_model`.
    """
    nodes = NodeOptions.of(arguments)
    launches = processes > 1 or nodes.several or nodes.max_restarts > 0
    with _resumable(config.run, training=training) as job_id, supervised(config.run, launches=launches):
        if not launches:
            return _run(config, training=training)
        # Checked before worker processes start, which takes seconds.
        require_writable(Path(config.run.output_dir), "run.output_dir")
        silence = None if config.run.hang_minutes is None else 60 * config.run.hang_minutes * LOST_SHARE
        launch(arguments, processes, silence=silence)
        return Path(config.run.output_dir, job_id)


def require_names(run: Any, nodes: NodeOptions, *, training: bool) -> None:
    """Check that all nodes and attempts of a run find the same folder.

    Args:
        run: the ``run`` block.
        nodes: the options of the launcher.
        training: True to train, False to evaluate.

    Raises:
        UserError: If they need the name of the run or ``run.resume_ckpt_path: auto``.
    """
    if nodes.several and not run.job_id:
        raise UserError("--nnodes needs run.job_id, so that all nodes use the same folder. Add --options run.job_id=NAME.")
    if nodes.max_restarts and training and run.resume_ckpt_path != "auto":
        raise UserError(
            f"--max-restarts {nodes.max_restarts} needs run.job_id and run.resume_ckpt_path=auto, with which the processes"
            " continue from the last checkpoint. Add them to --options."
        )


@contextmanager
def supervised(run: Any, *, launches: bool) -> Iterator[None]:
    """Apply the time limit of a run, and end this process if it hangs.

    Args:
        run: the ``run`` block.
        launches: whether this process launches others, each of which watches itself, and does not do the work.
    """
    minutes = run.stop_after_minutes
    if not launches:
        with STOP_REQUESTS.limited(minutes), watching(run.hang_minutes):
            yield
        return
    if minutes is not None:
        os.environ[STOP_AT] = str(time.time() + 60 * minutes)
    try:
        yield
    finally:
        os.environ.pop(STOP_AT, None)


def _run(config: RunConfig, *, training: bool) -> Path:
    """Train or evaluate in this process, and return the run's folder."""
    from emollama.logs.logger import get_logger
    from emollama.reporting.report import write_report_if_possible

    runner = config.runner_class(config, training=training)
    if training:
        return runner.train(write_report_if_possible)
    for path in runner.evaluate(write_report_if_possible):
        get_logger().info("wrote %s", path)
    return runner.folder


@contextmanager
def _resumable(run: Any, *, training: bool) -> Iterator[str]:
    """Choose the run's folder for this process and its workers, and yield its name; after an interrupt, say how to continue."""
    with _run_name(run) as job_id:
        try:
            yield job_id
        except KeyboardInterrupt as stopped:
            if isinstance(stopped, NoProgress):
                raise
            raise _with_message(stopped, _continuation(run, job_id, training=training)) from None


def _continuation(run: Any, job_id: str, *, training: bool) -> str:
    """Return a clause that says how to continue a run that was interrupted; "" if an evaluation has written nothing."""
    folder = Path(run.output_dir, job_id)
    if not training:
        return _how_to_continue("continue", run, job_id, []) if (folder / RESULT).is_dir() else ""
    # Another node than the first one may have a disk of its own.
    if not any(folder.glob("checkpoint_*.pth")) and integer("GROUP_RANK", 0) == 0:
        return "this run has not saved a checkpoint yet"
    return _how_to_continue("resume", run, job_id, [] if run.resume_ckpt_path == "auto" else ["run.resume_ckpt_path=auto"])


@contextmanager
def _run_name(run: Any) -> Iterator[str]:
    """Yield the name of the run's folder, and set it for the workers. If ``run.job_id`` is null, create a folder for the run."""
    before = os.environ.get(JOB_ID)
    created: list[Path] = []
    job_id = run.job_id or before
    if not job_id:
        # Without a launcher of this package, rank 0 chooses the folder.
        job_id, created = new_run_folder(run.output_dir) if integer("RANK", 0) == 0 else ("", [])
    os.environ[JOB_ID] = job_id
    try:
        yield job_id
    finally:
        remove_if_empty(created)
        os.environ.pop(JOB_ID)
        if before is not None:
            os.environ[JOB_ID] = before


def _how_to_continue(what: str, run: Any, job_id: str, options: list[str]) -> str:
    """Return a clause with the options that resume a run or continue an evaluation."""
    if not run.job_id:
        options = [f"run.job_id={job_id}", *options]
    if not options:
        return f"run the same command again to {what}"
    return f"to {what}, run the same command with these values added to --options: {shlex.join(options)}"


def _with_message(stopped: KeyboardInterrupt, clause: str) -> KeyboardInterrupt:
    """Return the same interrupt with a clause added to its message."""
    # The launcher passes on the message of its workers, which is complete.
    text = str(stopped) or "interrupted"
    is_complete = not clause or (isinstance(stopped, Stopped) and "; " in text)
    text = text if is_complete else f"{text}; {clause}"
    if isinstance(stopped, Interrupted):
        return Interrupted(text, stopped.signal_number)
    return type(stopped)(text)

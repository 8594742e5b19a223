"""Functions that two processes of one group call as if they were on two nodes (tests/test_nodes.py)."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from emollama.checkpoint_parts import parts_of
from emollama.config import load
from emollama.distributed import process_group
from emollama.distributed.nodes import Nodes
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.runners import chosen_checkpoint, fetching, node_checks
from emollama.runners.checkpoints import newest
from emollama.runners.chosen_checkpoint import _rank_with_newest
from emollama.runners.fetching import on_all_nodes
from emollama.runners.resume import require_same_run
from emollama.runners.run_checkpoints import RunCheckpoints
from emollama.runners.runner_base import RunnerBase


def two_nodes() -> World:
    """The world of this process, with each process on a node of its own."""
    return dataclasses.replace(process_group.start("cpu"), nodes=Nodes((0, 1), ("a", "b")))


def outcome(function: Any) -> tuple[str, str]:
    """The class and message of the error that a function raises; empty strings if it raises none."""
    try:
        function()
    except UserError as error:
        return type(error).__name__, str(error)
    return "", ""


def fails_on(rank: int) -> tuple[str, str]:
    """Call a function on the first process of each node; that of a rank fails."""
    world = two_nodes()

    def function() -> None:
        if world.rank == rank:
            raise UserError("no such file")

    return outcome(lambda: world.rank_zero_first(function))


def compare_configurations(paths: list[str], options: list[list[str]]) -> tuple[str, str]:
    """Compare the configurations of two nodes."""
    world = two_nodes()
    config = load(paths[world.rank], options[world.rank])
    return outcome(lambda: node_checks.compare_configurations(config, world))


def compare_weights(paths: list[str], options: list[list[str]]) -> tuple[str, str]:
    """Compare the weights of two nodes."""
    world = two_nodes()
    config = load(paths[world.rank], options[world.rank])
    return outcome(lambda: node_checks.compare_weights(config, world, resumes=False))


def require_equal(fields: list[dict[str, Any]]) -> tuple[str, str]:
    """Compare values of two nodes."""
    world = two_nodes()
    return outcome(lambda: node_checks.require_equal(fields[world.rank], world, "data", "Copy them."))


def compare_precision(dtypes: list[Any]) -> tuple[str, str]:
    """Compare the dtypes of two nodes."""
    world = two_nodes()
    precision = types.SimpleNamespace(compute_dtype=dtypes[world.rank])
    return outcome(lambda: node_checks.compare_precision(precision, world))  # type: ignore[arg-type]


def clock_warnings(ahead: float) -> list[str]:
    """Compare the clocks of two nodes, of which the second one is ahead; return the warnings of this process."""
    world, real = two_nodes(), time.time
    node_checks.time.time = lambda: real() + ahead * world.rank
    try:
        with logged() as messages:
            node_checks.warn_of_clocks(world)
    finally:
        node_checks.time.time = real
    return messages


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the warnings and errors that this process logs."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("emollama")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def fetch(folders: list[str], source: int) -> tuple[str, bytes, bool]:
    """Make a file of one node available on both; return its path and content, and whether a copy is left afterwards."""
    world = two_nodes()
    folder = Path(folders[world.rank])
    with on_all_nodes(str(folder / "checkpoint_0.pth"), folder, world, source) as path:
        content = Path(path).read_bytes()
    return path, content, (folder / ".fetched").exists()


def failed_fetch(folders: list[str]) -> tuple[str, str]:
    """Make a file of the first node available on both, of which the second one cannot store it."""
    return outcome(lambda: fetch(folders, 0))


def fetch_of_a_file_that_shrinks(folders: list[str]) -> tuple[str, str]:
    """Make a file of the first node available on both, while another program shortens it."""
    path = Path(folders[0]) / "checkpoint_0.pth"
    with patch.object(fetching, "CHUNK", 2**16), patch.object(fetching, "beat", lambda: os.truncate(path, 2**16)):
        return outcome(lambda: fetch(folders, 0))


def rank_with_newest(folders: list[str]) -> int | None:
    """The rank whose node has the checkpoint of the highest step; None if there is none."""
    world = two_nodes()
    highest = _rank_with_newest(Path(folders[world.rank]), world, {})
    return highest and highest[0]


def resume(folders: list[str], configured: str) -> tuple[str, int, list[str]]:
    """Resume from a sharded checkpoint like a run, without comparing configurations.

    Args:
        folders: the folders of the run on the nodes.
        configured: ``auto``, or the name of a checkpoint in these folders.

    Returns:
        The error, the step of the checkpoint if all of its parts are on this node, else -1, and the warnings.
    """
    world = two_nodes()
    folder, steps = Path(folders[world.rank]), []
    path = configured if configured == "auto" else str(folder / configured)
    run = types.SimpleNamespace(resume_ckpt_path=path, async_save=False)
    chosen_checkpoint.require_same_run = lambda *_: None

    def resumed() -> None:
        content = chosen_checkpoint.resume_content(types.SimpleNamespace(run=run), folder, {}, world, 2)  # type: ignore[arg-type]
        RunCheckpoints(run, folder, world, lambda _: {}, content)
        parts = content and parts_of(content, content["path"])
        steps.append(content["step"] if content and parts and len(parts.intact()) == len(parts.files) else -1)

    try:
        with logged() as warnings:
            _, error = outcome(resumed)
    finally:
        chosen_checkpoint.require_same_run = require_same_run
    return error, *(steps or [-1]), warnings


def train(paths: list[str], filler: str = "", step: int = -1) -> tuple[str, list[str], int]:
    """Train one configuration on each of two nodes.

    Args:
        paths: the configurations.
        filler: a file that fills the disk of the second node, where the folder of the run is next to it, until this step.
        step: a step.

    Returns:
        The error, the warnings, and the step of the last checkpoint whose parts were intact when this step began.
    """
    world, saved = two_nodes(), [-1]
    process_group._JOINED.append(world.nodes)
    config, take_step = load(paths[world.rank]), RunnerBase._step

    def stepped(runner: Any, number: int, *others: Any) -> Any:
        if number == step and world.is_main:
            content = newest(runner.folder, {}, check_parts=False)
            parts = content and parts_of(content, content["path"])
            assert content and parts
            theirs = Path(filler).parent / parts.folder.relative_to(paths[0].removesuffix("config.yaml"))
            if len(parts.intact() | dataclasses.replace(parts, folder=theirs).intact()) == len(parts.files):
                saved[0] = content["step"]
            Path(filler).unlink()
        return take_step(runner, number, *others)

    RunnerBase._step = stepped  # type: ignore[method-assign]
    try:
        with logged() as warnings:
            _, error = outcome(lambda: config.runner_class(config).train())
    finally:
        process_group._JOINED.pop()
        RunnerBase._step = take_step  # type: ignore[method-assign]
    return error, warnings, saved[0]

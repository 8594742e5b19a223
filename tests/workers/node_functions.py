"""Functions that two processes of one group call as if they were on two nodes (tests/test_nodes.py)."""

from __future__ import annotations

import dataclasses
import logging
import time
import types
from pathlib import Path
from typing import Any

from emollama.config import load
from emollama.distributed import process_group
from emollama.distributed.nodes import Nodes
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.runners import node_checks
from emollama.runners.fetching import on_all_nodes
from emollama.runners.resume import _rank_with_newest


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
    world, messages = two_nodes(), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger, real = logging.getLogger("emollama"), time.time
    logger.addHandler(handler)
    node_checks.time.time = lambda: real() + ahead * world.rank
    try:
        node_checks.warn_of_clocks(world)
    finally:
        node_checks.time.time = real
        logger.removeHandler(handler)
    return messages


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


def rank_with_newest(folders: list[str]) -> int:
    """The rank whose node has the checkpoint of the highest step."""
    world = two_nodes()
    return _rank_with_newest(Path(folders[world.rank]), world)

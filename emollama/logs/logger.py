"""The logger of the package, which writes to standard error."""

from __future__ import annotations

import logging

from emollama.logs.console import ConsoleHandler
from emollama.logs.verbosity import log_level


def get_logger() -> logging.Logger:
    """Return the logger of the package."""
    return logging.getLogger("emollama")


def set_up(is_main: bool) -> None:
    """Set up the logger: lines with the time on standard error; ranks other than 0 only log warnings."""
    logger = get_logger()
    if not logger.handlers:
        handler = ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    level = log_level(is_main=is_main)
    # Setting a level visits every logger of the process, which are hundreds with transformers.
    if logger.level != level:
        logger.setLevel(level)


def log_metrics(metrics: dict[str, float | None], before: str = "") -> None:
    """Log a line with the metrics of each task of each block.

    Args:
        metrics: "block/task/metric" -> value.
        before: text at the start of each line.
    """
    by_task: dict[str, list[str]] = {}
    for key, value in metrics.items():
        task, _, name = key.rpartition("/")
        by_task.setdefault(task, []).append(f"{name} {'-' if value is None else format(value, '.4f')}")
    for task, values in by_task.items():
        get_logger().info("%s%s: %s", before, task, "  ".join(values))

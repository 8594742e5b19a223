"""The package's logger: lines for people, on standard error."""

from __future__ import annotations

import logging

from emollama.logs.console import ConsoleHandler
from emollama.logs.verbosity import log_level


def get_logger() -> logging.Logger:
    """The package's logger."""
    return logging.getLogger("emollama")


def set_up(is_main: bool) -> None:
    """Lines with the time on standard error; ranks other than 0 speak only of warnings."""
    logger = get_logger()
    if not logger.handlers:
        handler = ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(log_level(is_main=is_main))


def log_metrics(metrics: dict[str, float | None], before: str = "") -> None:
    """A line for each task of each block; ``metrics`` are "block/task/metric" -> value."""
    lines: dict[str, list[str]] = {}
    for key, value in metrics.items():
        place, _, name = key.rpartition("/")
        lines.setdefault(place, []).append(f"{name} {'-' if value is None else format(value, '.4f')}")
    for place, shown in lines.items():
        get_logger().info("%s%s: %s", before, place, "  ".join(shown))

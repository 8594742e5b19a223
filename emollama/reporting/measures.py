"""How metrics are displayed, and whether higher values are better."""

from __future__ import annotations

from typing import Any

from emollama.errors import UserError
from emollama.evaluation.metrics import Metric, metric
from emollama.json_io import number


def registered_metric(name: str) -> Metric | None:
    """Return the metric with this name; None if it is not registered here, such as a metric of a user's module."""
    try:
        return metric(name)
    except UserError:
        return None


def higher_is_better(name: str) -> bool | None:
    """Return whether higher values of a metric are better; None if unknown."""
    registered = registered_metric(name)
    return registered.higher_is_better if registered else None


def metric_title(name: str) -> str:
    """Return the name of a metric in tables."""
    registered = registered_metric(name)
    return registered.title if registered else name


def metric_digits(name: str) -> int:
    """Return the number of decimals of a metric in tables: 2 for a judge's scores, else 4."""
    registered = registered_metric(name)
    return 2 if registered and registered.max_value == 10 else 4


def block_and_task(key: str) -> str:
    """Return block and task of a key ``<block>/<task>/<metric>``."""
    return " · ".join(part for part in key.split("/")[:-1] if part)


def format_metric(name: str, value: float | None) -> str:
    """Format a value of a metric for a table; a metric with a best possible value always has the same number of decimals."""
    registered, digits = registered_metric(name), metric_digits(name)
    if value is None or registered is None or registered.max_value is None:
        return format_value(value, digits)
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:.{digits}f}"


def format_value(value: Any, digits: int = 4) -> str:
    """Format a number for a table; a dash if it is not a number."""
    finite = number(value)
    if finite is None:
        return "–"
    if finite and not 10.0**-digits <= abs(finite) < 1e6:
        return f"{finite:.2e}"
    return f"{finite:,.{digits}f}"

"""How figures are shown, and which way a metric goes."""

from __future__ import annotations

from typing import Any

from emollama.errors import UserError
from emollama.evaluation.metrics import Metric, metric
from emollama.reporting.json_io import number


def registered_metric(name: str) -> Metric | None:
    """The metric of this name; None where none is registered, as for one of a user's own module."""
    try:
        return metric(name)
    except UserError:
        return None


def higher_is_better(name: str) -> bool | None:
    """Which way a metric goes; None where nobody knows."""
    found = registered_metric(name)
    return found.higher_is_better if found else None


def title_of(name: str) -> str:
    """A metric's name as tables show it."""
    found = registered_metric(name)
    return found.title if found else name


def digits_of(name: str) -> int:
    """Decimals that a metric is shown with: fewer of a judge's points."""
    found = registered_metric(name)
    return 2 if found and found.top == 10 else 4


def block_and_task(key: str) -> str:
    """Block and task of a key ``<block>/<task>/<metric>``."""
    return " · ".join(part for part in key.split("/")[:-1] if part)


def figure(value: Any, digits: int = 4) -> str:
    """A number as tables show it; a dash for none."""
    found = number(value)
    if found is None:
        return "–"
    if found and not 10.0**-digits <= abs(found) < 1e6:
        return f"{found:.2e}"
    return f"{found:,.{digits}f}"

"""The error that is meant for the person at the keyboard."""

from __future__ import annotations

import math
from typing import Any


class UserError(ValueError):
    """Something in the user's files, configuration or environment is wrong.

    The message names the file, line or key and the remedy. Entry points print it without a traceback and exit with 1.
    """


class EchoedError(UserError):
    """A :class:`UserError` of rank 0, raised again on another rank, which stays silent about it."""


def listing(items: list[str] | tuple[str, ...]) -> str:
    """``3: a, b, c``: the count of the items, then all of them."""
    return f"{len(items)}: {', '.join(items)}"


def require_at_least(minimum: float, cfg: Any, *keys: str) -> None:
    """Refuse values of a Config that are below a minimum, or not finite; None passes.

    Raises:
        ValueError: naming the key, its value and the minimum.
    """
    for key in keys:
        value = getattr(cfg, key)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{key} is {value}; it must be at least {minimum}, and finite")

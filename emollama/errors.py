"""The error that is meant for the person at the keyboard."""

from __future__ import annotations

import math
from typing import Any


class UserError(ValueError):
    """Something in the user's files, configuration or environment is wrong.

    The message names the file, line or key and the remedy. Entry points print it without a traceback and exit with 1.
    """


class OutputClosed(UserError):
    """The program that reads standard output or standard error has ended, as ``head`` does after ten lines."""


class EchoedError(UserError):
    """A :class:`UserError` of another rank, raised again on this one, which does not print it."""


class EchoedCrash(RuntimeError):
    """An unexpected exception of another rank, raised again on this one, which does not print it.

    Attributes:
        rank: of the process that crashed.
        trace: its traceback.
    """

    def __init__(self, message: str, rank: int, trace: str) -> None:
        super().__init__(message, rank, trace)  # all of them, for pickle
        self.rank, self.trace = rank, trace

    def __str__(self) -> str:
        return f"process {self.rank}: {self.args[0]}"


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop.

    Attributes:
        signal_number: such as SIGINT or SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def require_at_least(minimum: float, cfg: Any, *keys: str) -> None:
    """Refuse values of a Config that are below a minimum, or not finite; None passes.

    Raises:
        ValueError: naming the key, its value and the minimum.
    """
    for key in keys:
        value = getattr(cfg, key)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{key} is {value}; it must be at least {minimum}, and finite")

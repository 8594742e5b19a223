"""The error that is meant for the person at the keyboard."""

from __future__ import annotations


class UserError(ValueError):
    """Something in the user's files, configuration or environment is wrong.

    The message names the file, line or key and the remedy. Entry points print it without a traceback and exit with 1.
    """


class EchoedError(UserError):
    """A :class:`UserError` of rank 0, raised again on another rank, which stays silent about it."""


def listing(items: list[str] | tuple[str, ...]) -> str:
    """``3: a, b, c``: the count of the items, then all of them."""
    return f"{len(items)}: {', '.join(items)}"

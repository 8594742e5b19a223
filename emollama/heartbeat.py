"""The progress of this process: code that finishes a part of its work calls :func:`beat`, and the watchdog counts the calls."""

from __future__ import annotations

_BEATS = [0]


def beat() -> None:
    """Report progress: a training step, a batch of answers, an item of a loop with a progress bar."""
    _BEATS[0] += 1


def beats() -> int:
    """Return the number of calls of :func:`beat` in this process."""
    return _BEATS[0]

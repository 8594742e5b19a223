"""The progress of this process: code that finishes a part of its work calls :func:`beat`, and the watchdog counts the calls.

The watchdog also asks whether all processes of the run have joined.
"""

from __future__ import annotations

_BEATS = [0]
_JOINED = [False]


def beat() -> None:
    """Report progress: a training step, a batch of answers, an item of a loop with a progress bar."""
    _BEATS[0] += 1


def beats() -> int:
    """Return the number of calls of :func:`beat` in this process."""
    return _BEATS[0]


def note_all_joined() -> None:
    """Report that all processes of the run have joined: from now on, each node is expected to give signs of life."""
    _JOINED[0] = True


def all_joined() -> bool:
    """Return whether all processes of the run have joined."""
    return _JOINED[0]

"""The progress of this process: code that finishes a part of its work calls :func:`beat`, and the watchdog counts the calls."""

from __future__ import annotations

_BEATS = [0]
_MET = [False]


def beat() -> None:
    """Report progress: a training step, a batch of answers, an item of a loop with a progress bar."""
    _BEATS[0] += 1


def beats() -> int:
    """Return the number of calls of :func:`beat` in this process."""
    return _BEATS[0]


def note_meeting() -> None:
    """Remember that all processes of the run have met, so that each node is expected to give signs of life from now on."""
    _MET[0] = True


def have_met() -> bool:
    """Return whether all processes of the run have met."""
    return _MET[0]

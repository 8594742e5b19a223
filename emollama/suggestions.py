"""Suggestions for misspelled names, in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

PREFIX = 3  # minimum length of a name for suggesting names that start with it


def did_you_mean(name: str, valid_names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `` Did you mean 'x'?`` (with a leading space) with the nearest valid name, or "" if none is similar.

    Args:
        name: the unknown name.
        valid_names: the valid names.
        cutoff: minimum similarity, as difflib measures it, from 0 to 1.
    """
    suggestion = nearest(name, valid_names, cutoff)
    return "" if suggestion is None else f" Did you mean '{suggestion}'?"


def nearest(name: str, valid_names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the valid name that was probably meant, or None.

    Args:
        name: the unknown name.
        valid_names: the valid names. Those that start with ``name`` are preferred.
        cutoff: minimum similarity of other names, as difflib measures it, from 0 to 1.
    """
    names = list(valid_names)
    longer = [registered for registered in names if registered.startswith(name)] if len(name) >= PREFIX else []
    matches = difflib.get_close_matches(name, longer or names, n=1, cutoff=0.0 if longer else cutoff)
    return matches[0] if matches else None

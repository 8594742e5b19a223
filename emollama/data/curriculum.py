"""A curriculum: easy clips first, all of them after some epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emollama.data.annotations import NO_VALENCE, Clip
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.registry import did_you_mean

KEYS = ("by", "epochs", "descending")


@dataclass(frozen=True)
class Curriculum:
    """What clips are sorted by, and for how long it matters.

    Attributes:
        by: "modalities" (clips that lack none first), "answer_length" (words of the longest answer of the pool's tasks), or a
            column of the list that holds numbers.
        epochs: in epoch e below this, the (e + 1) / epochs easiest clips are drawn.
        descending: large values are the easy ones.
    """

    by: str
    epochs: int
    descending: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Curriculum | None:
        """From the block's ``curriculum`` key; None where it is empty.

        Raises:
            ValueError: unknown or missing keys, or values of another type; names the key.
        """
        if not given:
            return None
        for key in given:
            if key not in KEYS:
                raise ValueError(f"curriculum: unknown key '{key}'.{did_you_mean(str(key), KEYS)} Known: {', '.join(KEYS)}")
        by, epochs, descending = given.get("by"), given.get("epochs"), given.get("descending", False)
        if not isinstance(by, str) or not by:
            raise ValueError(f"curriculum.by is {by!r}; it is modalities, answer_length or a column of the list")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"curriculum.epochs is {epochs!r}; it is a number of epochs, at least 1")
        if not isinstance(descending, bool):
            raise ValueError(f"curriculum.descending is {descending!r}; it is True or False")
        return cls(by, epochs, descending)


def numbers(clips: Sequence[Clip], column: str, key: str, path: str) -> list[float]:
    """A column of the clips' rows as numbers; a valence that is not known is NaN, which is sorted last.

    Args:
        clips: as read.
        column: of the list or table.
        key: the configuration key, for messages.
        path: the list, for messages.

    Raises:
        UserError: no such column, or something else in it; lists all such rows.
    """
    known = ["modalities", "answer_length", *clips[0].columns]
    if not any(column in clip.columns for clip in clips):
        hint = did_you_mean(column, known)
        raise UserError(f"{key} '{column}': {path} has no such column.{hint} Known: {abbreviated(known)}")
    cells = [clip.columns.get(column, "") for clip in clips]
    wrong = [f"{cell!r} (line {clip.line}, {clip.name})" for clip, cell in zip(clips, cells, strict=True) if not _is_number(cell)]
    if wrong:
        raise UserError(f"{key} '{column}': {path} holds no number for clips {listing(wrong)}. Correct or exclude them.")
    unknown = NO_VALENCE if column == "valence" else None
    return [math.nan if float(cell) == unknown else float(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False

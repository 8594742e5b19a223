"""Curricula: train on easy clips first, and on all clips after some epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emollama.data.annotations import NO_VALENCE, Clip
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.suggestions import did_you_mean

KEYS = ("by", "epochs", "descending")


@dataclass(frozen=True)
class Curriculum:
    """The order in which clips enter training.

    Attributes:
        by: what measures the difficulty of a clip: "modalities" (number of missing feature arrays), "answer_length" (words of the
            longest answer among the tasks), or a column of the annotation file that contains numbers.
        epochs: number of epochs until all clips are used; epoch e uses the easiest (e + 1) / epochs of them.
        descending: large values are easy. By default, small values are.
    """

    by: str
    epochs: int
    descending: bool = False

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> Curriculum | None:
        """Create a curriculum from a block's ``curriculum`` key; None if it is empty.

        Raises:
            ValueError: If a key is unknown or missing, or its value has the wrong type. The message names the key.
        """
        if not mapping:
            return None
        for key in mapping:
            if key not in KEYS:
                raise ValueError(f"curriculum: unknown key '{key}'.{did_you_mean(str(key), KEYS)} Known: {', '.join(KEYS)}")
        by, epochs, descending = mapping.get("by"), mapping.get("epochs"), mapping.get("descending", False)
        if not isinstance(by, str) or not by:
            raise ValueError(f"curriculum.by is {by!r}; it must be modalities, answer_length or a column of the list")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"curriculum.epochs is {epochs!r}; it must be a whole number of at least 1")
        if not isinstance(descending, bool):
            raise ValueError(f"curriculum.descending is {descending!r}; it must be True or False")
        return cls(by, epochs, descending)


def column_values(clips: Sequence[Clip], column: str, key: str, path: str) -> list[float]:
    """Return a column of an annotation file as numbers. An unknown valence becomes NaN, which a curriculum sorts last.

    Args:
        clips: the clips of the file.
        column: the column's name.
        key: the configuration key, for messages.
        path: the annotation file, for messages.

    Raises:
        UserError: If the column does not exist, or contains anything but numbers. The message lists all such rows.
    """
    names = ["modalities", "answer_length", *clips[0].columns]
    if not any(column in clip.columns for clip in clips):
        hint = did_you_mean(column, names)
        raise UserError(f"{key} '{column}': {path} has no such column.{hint} Known: {abbreviated(names)}")
    cells = [clip.columns.get(column, "") for clip in clips]
    pairs = zip(clips, cells, strict=True)
    invalid = [f"{cell!r} (line {clip.line}, {clip.name})" for clip, cell in pairs if not _is_number(cell)]
    if invalid:
        raise UserError(f"{key} '{column}': not a number in {path} for {listing(invalid, 'clip')}. Correct or exclude them.")
    unknown = NO_VALENCE if column == "valence" else None
    return [math.nan if float(cell) == unknown else float(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False

"""Selection of the frames of a video."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from emollama.data.annotations import NAME_COLUMNS, read_json
from emollama.data.csv_files import read_csv, require_column
from emollama.data.slots import FrameSelection
from emollama.errors import UserError
from emollama.media.source import Source, UnusableMedia
from emollama.paths import extension, require_file

FaceChoice = Literal["detect", "centre"]
PEAK = "peak_index"
NO_PEAK = "the index of its most expressive frame (peak) is unknown"


def choose_frame(choice: FrameSelection, count: int, source: Source) -> int:
    """Return the index of the frame to read from a clip.

    Args:
        choice: which frame; ``random`` always gives the same frame for a name; ``peak`` is the most expressive frame, or the last
            frame if the clip is shorter.
        count: number of frames of the clip.
        source: the clip.

    Raises:
        UnusableMedia: If ``peak`` is chosen, but the clip's most expressive frame is unknown.
    """
    if choice == "first":
        return 0
    if choice == "middle":
        return count // 2
    if choice == "random":
        digest = hashlib.sha256(source.name.encode()).digest()
        return int(np.random.default_rng(list(digest)).integers(count))
    if source.peak is None:
        raise UnusableMedia(NO_PEAK)
    return min(source.peak, count - 1)


def segment_middles(count: int, segments: int) -> list[int]:
    """Return the middle frame of each of several equal segments; frames repeat if there are fewer frames than segments."""
    return [count * (2 * segment + 1) // (2 * segments) for segment in range(segments)]


def segment_pairs(count: int, n: int) -> list[int]:
    """Return n of ``count`` frames: two neighbouring frames in the middle of each of n / 2 equal segments."""
    tick = (count - 1) / (n // 2)
    starts = [int(tick / 2 + tick * number) for number in range(n // 2)]
    return [min(start + after, count - 1) for start in starts for after in (0, 1)]


def read_peaks(path: str) -> dict[str, int]:
    """Read the index of the most expressive frame of each clip.

    Args:
        path: captions in the format of MERR, ``{name: {"peak_index": "12", ...}}``, in which clips without the key are skipped;
            or a CSV file with a column of names and ``peak_index``.

    Returns:
        Clip name -> index of the frame, from 0.

    Raises:
        UserError: If the file does not exist or has an unexpected format, an index is not a number, or a clip has two different
            indices.
    """
    require_file(path, "peak_index_path")
    peaks: dict[str, int] = {}
    for where, name, value in _peaks_in_csv(path) if extension(path) == ".csv" else _peaks_in_json(path):
        text = str(value).strip()
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"{where}: the {PEAK} of '{name}' is {value!r}; expected the index of a frame, from 0")
        if peaks.setdefault(name, int(text)) != int(text):
            raise UserError(f"{where}: '{name}' already has a different {PEAK}. Remove one of the two.")
    return peaks


def _peaks_in_csv(path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (file and line for messages, name, value of the cell)."""
    header, rows = read_csv(path, "peak_index_path")
    name_column = require_column(path, header, NAME_COLUMNS)
    require_column(path, header, [PEAK])
    for line_number, row in rows:
        yield f"{path}, line {line_number}", row[name_column], row[PEAK]


def _peaks_in_json(path: str) -> Iterator[tuple[str, str, Any]]:
    table = read_json(path)
    if not isinstance(table, dict) or not any(isinstance(entry, dict) and PEAK in entry for entry in table.values()):
        raise UserError(f"{path}: expected one JSON object with clip names as keys, and objects with '{PEAK}' as values")
    for name, entry in table.items():
        if isinstance(entry, dict) and PEAK in entry:
            yield path, name, entry[PEAK]

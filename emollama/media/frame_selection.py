"""Which frames of a video are looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from emollama.data.annotations import NAME_COLUMNS, read_csv, read_json, require_column
from emollama.errors import UserError
from emollama.media.source import Source, UnusableMedia
from emollama.paths import require_file

FrameChoice = Literal["first", "middle", "random", "peak"]
FaceChoice = Literal["detect", "centre"]
PEAK = "peak_index"
NO_PEAK = "nobody said which of its frames is the peak"


def choose_frame(choice: FrameChoice, count: int, source: Source) -> int:
    """The number of the frame that is taken of a clip, from 0.

    Args:
        choice: ``random`` is the same one for the same name; ``peak`` is the most expressive one, or the last where it lies
            behind that.
        count: frames of the clip.
        source: the clip.

    Raises:
        UnusableMedia: ``peak``, and nobody said which it is.
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
    """The middle frame of each of some equal segments; frames repeat where there are fewer than segments."""
    return [count * (2 * segment + 1) // (2 * segments) for segment in range(segments)]


def segment_pairs(count: int, n: int) -> list[int]:
    """n of ``count`` frames: two neighbours in the middle of each of n / 2 equal segments."""
    tick = (count - 1) / (n // 2)
    starts = [int(tick / 2 + tick * number) for number in range(n // 2)]
    return [min(start + after, count - 1) for start in starts for after in (0, 1)]


def read_peaks(path: str) -> dict[str, int]:
    """Clip -> number of its most expressive frame, from 0.

    Args:
        path: captions of MERR's kind, ``{name: {"peak_index": "12", ...}}``, clips without one passed over; or a CSV file with a
            column of names and ``peak_index``.

    Raises:
        UserError: no such file, one of another form, a number that is none, or two different ones of a clip.
    """
    require_file(path, "peak_index_path")
    peaks: dict[str, int] = {}
    for where, name, written in _peaks_in_csv(path) if path.lower().endswith(".csv") else _peaks_in_json(path):
        text = str(written).strip()
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"{where}: the {PEAK} of '{name}' is {written!r}; expected the number of a frame, from 0")
        if peaks.setdefault(name, int(text)) != int(text):
            raise UserError(f"{where}: a second, different {PEAK} of '{name}'. Keep one.")
    return peaks


def _peaks_in_csv(path: str) -> Iterator[tuple[str, str, Any]]:
    """(where it stands, name, peak as written)."""
    header, rows = read_csv(path, "peak_index_path")
    name_column = require_column(path, header, NAME_COLUMNS)
    require_column(path, header, [PEAK])
    for line, row in rows:
        yield f"{path}, line {line}", row[name_column], row[PEAK]


def _peaks_in_json(path: str) -> Iterator[tuple[str, str, Any]]:
    table = read_json(path)
    if not isinstance(table, dict) or not any(isinstance(entry, dict) and PEAK in entry for entry in table.values()):
        raise UserError(f"{path}: expected one JSON object with clip names as keys, and objects with '{PEAK}' as values")
    for name, entry in table.items():
        if isinstance(entry, dict) and PEAK in entry:
            yield path, name, entry[PEAK]

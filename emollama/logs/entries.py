"""Reads the log of an interrupted run, which the resumed run continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emollama.json_io import Notes, read_lines, whole_number
from emollama.logs.logger import get_logger


def entries_before(path: Path, step: int) -> list[dict[str, Any]]:
    """Read the entries of a log with one JSON object per line that belong to earlier steps.

    A warning counts lines that cannot be used, such as the incomplete last line of a killed process.
    """
    notes: Notes = []
    entries = read_lines(path, notes)
    numbers = [whole_number(entry.get("step")) for entry in entries]
    if without := numbers.count(None):
        notes.append(f"{path}: {without:,} of {len(entries):,} entries were left out, because they have no step")
    for note in notes:
        get_logger().warning("%s", note)
    return [entry for entry, number in zip(entries, numbers, strict=True) if number is not None and number < step]

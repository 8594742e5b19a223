"""Values out of files that may be cut short, spoilt by hand, or of another version: what cannot be used is left out.

Files that cannot be read, and lines that are no objects, are told in ``notes``; nothing here raises for what a file holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Notes = list[str]
LARGEST = 1e30


def number(value: Any) -> float | None:
    """A number of a size that can be drawn; None for everything else, such as true, "0.5", NaN and 1e300."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None  # NaN is not


def whole(value: Any) -> int | None:
    """A whole number that a float holds exactly."""
    found = number(value)
    return int(found) if found is not None and abs(found) < 2**53 and found == int(found) else None


def text(value: Any) -> str:
    """A text as it is, nothing for null, and JSON for all else."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def mapping(value: Any) -> dict[str, Any]:
    """A mapping; an empty one for everything else."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts(value: Any) -> list[str]:
    """The items of a list as texts."""
    return [text(item) for item in value] if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float | None]:
    """The values of a mapping as numbers."""
    return {name: number(item) for name, item in mapping(value).items()}


def read_text(path: Path, notes: Notes) -> str:
    """A file's text, with U+FFFD for bytes that are none; "" where there is no such file."""
    if not path.exists():
        return ""
    try:
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        notes.append(f"{path}: cannot be read: {error.strerror}")
        return ""


def read_object(path: Path, notes: Notes) -> dict[str, Any]:
    """The object that a JSON file holds; an empty one where it holds none."""
    raw = read_text(path, notes)
    try:
        found = _parsed(raw)
    except (ValueError, RecursionError):
        found = None
    if raw and not isinstance(found, dict):
        notes.append(f"{path}: holds no JSON object, and is left out")
    return mapping(found)


def read_lines(path: Path, notes: Notes, most: int | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Args:
        path: the file.
        notes: told of lines that hold no object.
        most: of a file with more lines, every n-th one is read (and the last), so that about this many are.
    """
    lines = read_text(path, notes).split("\n")
    lines = [line for line in lines if line.strip()]
    step = -(-len(lines) // most) if most else 1
    chosen: Sequence[str] = lines if step <= 1 else [*lines[:-1:step], lines[-1]]
    found, spoilt = [], 0
    for line in chosen:
        try:
            value = _parsed(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            spoilt += 1
    if spoilt:
        notes.append(f"{path}: {spoilt:,} of {len(chosen):,} lines read hold no JSON object, and are left out")
    return found


def _parsed(raw: str) -> Any:
    """What a JSON text says; halves of surrogate pairs, which no file can hold, become question marks."""
    value = json.loads(raw)
    if "\\ud" in raw or "\\uD" in raw:
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value

"""Tolerant readers for JSON files that may be truncated, edited by hand, or written by another version.

Unusable values are skipped. Files that cannot be read, and lines that are not objects, are listed in ``notes``. No content of a
file raises an error here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emollama.text_encoding import encodable

Notes = list[str]  # messages for the reader of a report
LARGEST = 1e30


def number(value: Any) -> float | None:
    """Return a number that can be plotted; None for any other value, such as true, "0.5", NaN and 1e300."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Comparisons with NaN are false.
    return float(value) if abs(value) <= LARGEST else None


def whole_number(value: Any) -> int | None:
    """Return an integer that a float represents exactly; None for any other value."""
    converted = number(value)
    return int(converted) if converted is not None and abs(converted) < 2**53 and converted == int(converted) else None


def text(value: Any) -> str:
    """Return a string unchanged, "" for null, and any other value as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping unchanged, and an empty one for any other value."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the mappings in a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts(value: Any) -> list[str]:
    """Return the items of a list as strings."""
    return [text(item) for item in value] if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float | None]:
    """Return the values of a mapping as numbers."""
    return {name: number(item) for name, item in mapping(value).items()}


def parse_json(
    raw: str | bytes,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """Parse JSON.

    Args:
        raw: the text.
        object_pairs_hook: as for ``json.loads``.
        parse_constant: as for ``json.loads``.

    Raises:
        ValueError: If the text is not JSON (a ``json.JSONDecodeError``) or not UTF-8, or if it is nested too deeply.
    """
    try:
        return json.loads(raw, object_pairs_hook=object_pairs_hook, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def read_text(path: Path, notes: Notes) -> str:
    """Read a file as UTF-8, with U+FFFD for invalid bytes; "" if the file does not exist."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path}: cannot be read: {error.strerror}")
        return ""
    if not raw:
        notes.append(f"{path}: the file is empty")
    return raw.decode("utf-8-sig", "replace")


def read_object(path: Path, notes: Notes) -> dict[str, Any]:
    """Read a JSON file that contains an object; return an empty object for any other content."""
    raw = read_text(path, notes)
    try:
        value = _parse(raw)
    except ValueError:
        value = None
    if raw and not isinstance(value, dict):
        notes.append(f"{path}: left out, because it is not a JSON object")
    return mapping(value)


def read_lines(path: Path, notes: Notes, most: int | None = None) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file.

    Args:
        path: the file.
        notes: receives a message if lines are not objects.
        most: if the file has more lines, read every n-th line and the last one, about this many in total.
    """
    lines = read_text(path, notes).split("\n")
    lines = [line for line in lines if line.strip()]
    step = -(-len(lines) // most) if most else 1
    chosen: Sequence[str] = lines if step <= 1 else [*lines[:-1:step], lines[-1]]
    rows, invalid = [], 0
    for line in chosen:
        try:
            value = _parse(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            rows.append(value)
        else:
            invalid += 1
    if invalid:
        notes.append(f"{path}: {invalid:,} of {len(chosen):,} lines read were left out, because they are not JSON objects")
    return rows


def _parse(raw: str) -> Any:
    """Parse JSON. Lone surrogates become question marks, because UTF-8 files cannot contain them."""
    value = parse_json(raw)
    if "\\ud" in raw or "\\uD" in raw:
        value = json.loads(encodable(json.dumps(value, ensure_ascii=False)))
    return value

"""Checks of texts in the files of users: halves of characters, and files whose format differs from the expected one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate in JSON; two of them may be one character


def is_encodable(text: str) -> bool:
    """Return whether a text consists of whole characters. JSON can contain lone surrogates, halves of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(text: str) -> str:
    """Replace lone surrogates by question marks: JSON escapes can contain them, but UTF-8 files cannot."""
    return text.encode("utf-8", "replace").decode()


def escaped(text: str) -> str:
    """Replace lone surrogates by their escapes, as they are written in JSON, for messages."""
    return text.encode("utf-8", "backslashreplace").decode()


def half_characters(raw: str, value: Any) -> list[str]:
    """Return the places of texts with lone surrogates, such as ``clip_7.caption`` or ``[3].words[0]``.

    Args:
        raw: a JSON text.
        value: the parsed text.
    """
    return list(_half_characters(value, "")) if _ESCAPED.search(raw) else []


def json_format(text: str) -> str | None:
    """Return "a JSON file" or "a JSON Lines file" for the text of such a file, None for any other text.

    A text that only begins with a bracket is neither, because names and columns may begin with one.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    lines = [line for line in text.split("\n", 100) if line.strip()]
    if len(lines) > 1 and _is_json(lines[0]):
        return "a JSON Lines file"
    return "a JSON file" if _is_json(text) else None


def other_format(text: str, position: int) -> str | None:
    """Return what a text that is not JSON is instead, given the position of the first error; None if that is unknown."""
    if json_format(text) == "a JSON Lines file":
        return "a JSON Lines file, with one value per line"
    first_line = text.lstrip().partition("\n")[0]
    return "a CSV table" if not text[:position].strip() and "," in first_line and first_line[:1] not in "{[" else None


def _half_characters(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, str) and not is_encodable(value):
        yield place or "the text"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _half_characters(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{place}.{escaped(key)}" if place else escaped(key)
            if not is_encodable(key):
                yield f"the key {inner}"
            yield from _half_characters(item, inner)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True

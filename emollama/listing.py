"""Lists in messages: the first ten entries, and where all of them are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from emollama.paths import atomic_write, cache_folder

SHOWN = 10  # entries of a list in a message
LINES = "\n- "  # separator of a list with one entry per line


def listing(items: Iterable[str]) -> str:
    """``3: a, b, c``: the number of items, then the items, abbreviated as by :func:`abbreviated`."""
    items = list(items)
    return f"{len(items):,}: {abbreviated(items)}"


def abbreviated(items: Iterable[str], separator: str = ", ", *, where: str | None = None) -> str:
    """The items, or the first ten and ``... and 28,608 more (all of them: FILE)``.

    Args:
        items: what to list.
        separator: between the items; :data:`LINES` writes one per line.
        where: says where all items are. None writes them into a text file in the user's cache folder, one per line, and
            names that file; if it cannot be written, the message names no file.
    """
    items = list(items)
    if len(items) <= SHOWN:
        return separator.join(items)
    if where is None:
        file = _written(items)
        where = "" if file is None else f"all of them: {file}"
    more = f"... and {len(items) - SHOWN:,} more" + (f" ({where})" if where else "")
    return separator.join([*items[:SHOWN], more])


def _written(items: list[str]) -> Path | None:
    """The file with all items, named after its content, so that the same list is written once; None if that fails."""
    text = "".join(f"{item}\n" for item in items).encode("utf-8", "backslashreplace")
    with suppress(OSError, RuntimeError):
        path = cache_folder() / "lists" / f"{hashlib.sha256(text).hexdigest()[:12]}.txt"
        with atomic_write(path, "wb", durable=False) as file:
            file.write(text)
        return path
    return None

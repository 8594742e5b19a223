"""Lists in messages, which show the first ten entries and the path of a file with all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from emollama.paths import atomic_write, cache_folder

SHOWN = 10  # maximum number of entries of a list in a message
LINES = "\n- "  # separator for lists with one entry per line


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``1 process`` or ``1,200 samples``; the plural is the noun with an ``s`` if None."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listing(items: Iterable[str], noun: str, plural: str | None = None) -> str:
    """Return the number of items and the items, such as ``3 tensors: a, b, c``.

    Args:
        items: the items; :func:`abbreviated` shortens long lists.
        noun: what one item is, such as ``tensor``.
        plural: plural of the noun. If None, it is the noun with an ``s``.
    """
    items = list(items)
    return f"{counted(len(items), noun, plural)}: {abbreviated(items)}"


def abbreviated(items: Iterable[str], separator: str = ", ", *, where: str | None = None) -> str:
    """Join the items; of a long list, the first ten and ``... and 28,608 more (all of them: FILE)``.

    Args:
        items: the items.
        separator: text between the items; with :data:`LINES`, there is one item per line.
        where: text in parentheses that says where all items are. If None, they are written to a text file in the user's cache
            folder, which the message names unless it cannot be written.
    """
    items = list(items)
    if len(items) <= SHOWN:
        return separator.join(items)
    if where is None:
        file = _write_list(items)
        where = "" if file is None else f"all of them: {file}"
    more = f"... and {len(items) - SHOWN:,} more" + (f" ({where})" if where else "")
    return separator.join([*items[:SHOWN], more])


def _write_list(items: list[str]) -> Path | None:
    """Write all items to a file and return its path, or None if that fails.

    The file is named after its content, so that a repeated message does not create another file.
    """
    text = "".join(f"{item}\n" for item in items).encode("utf-8", "backslashreplace")
    with suppress(OSError, RuntimeError):
        path = cache_folder() / "lists" / f"{hashlib.sha256(text).hexdigest()[:12]}.txt"
        with atomic_write(path, "wb", durable=False) as file:
            file.write(text)
        return path
    return None

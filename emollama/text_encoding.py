"""Texts that UTF-8 cannot store: detection and replacement of lone surrogates, and errors about files that are not UTF-8."""

from __future__ import annotations

import codecs
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

from emollama.errors import UserError

WESTERN, CHINESE = "WINDOWS-1252", "GB18030"  # the encodings in which Excel saves CSV files
LONE_SURROGATE = "a lone surrogate (half of a character), which UTF-8 cannot store. Write the whole character, or remove it"
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate in JSON; two of them may be one character
_ZIP = b"PK\x03\x04"


def is_encodable(text: str) -> bool:
    """Return whether a text consists of whole characters. JSON can contain lone surrogates, halves of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(text: str) -> str:
    """Replace lone surrogates by question marks: JSON escapes can contain them, but UTF-8 files cannot."""
    # The same object takes no more memory.
    return text if is_encodable(text) else text.encode("utf-8", "replace").decode()


def escaped(text: str, encoding: str = "utf-8") -> str:
    """Replace lone surrogates, and characters outside an encoding, by their escapes with backslashes, for messages."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def lone_surrogates(raw: str, value: Any) -> list[str]:
    """Return the places of texts with lone surrogates, such as ``clip_7.caption`` or ``[3].words[0]``.

    Args:
        raw: a JSON text.
        value: the parsed text.
    """
    return list(_lone_surrogates(value, "")) if _ESCAPED.search(raw) else []


def not_utf8(path: str, raw: bytes, position: int) -> UserError:
    """Return the error for a text file that is not UTF-8, with the command that converts it, if it is a text in another encoding.

    Args:
        path: the file.
        raw: its content.
        position: index of the first invalid byte.
    """
    line = 1 + raw[:position].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")
    place = f"{path}, line {line}: not UTF-8 text (byte 0x{raw[position]:02x} at position {position})"
    if raw.startswith(_ZIP):
        return UserError(f"{place}. The file is a zip archive or a workbook. Save it as text, in UTF-8.")
    if _has_lone_surrogates(raw):
        return UserError(f"{place}: {LONE_SURROGATE}.")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UserError(f"{place}. The file is UTF-16. Convert it: {_command('UTF-16', path)}")
    # A text in one of these encodings is usually valid in the other one too, so only the user can decide.
    other = f"or, if it contains Chinese text, with -f {CHINESE}"
    return UserError(f"{place}. Convert it, if it comes from a Western Windows program: {_command(WESTERN, path)} ({other})")


def _has_lone_surrogates(raw: bytes) -> bool:
    """Return whether a text is UTF-8 except for lone surrogates, which some programs write."""
    try:
        raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _lone_surrogates(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, str) and not is_encodable(value):
        yield place or "the text"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _lone_surrogates(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{place}.{escaped(key)}" if place else escaped(key)
            if not is_encodable(key):
                yield f"the key {inner}"
            yield from _lone_surrogates(item, inner)


def _command(encoding: str, path: str) -> str:
    stem, extension = os.path.splitext(path)
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(path)} > {shlex.quote(f'{stem}.utf8{extension}')}"

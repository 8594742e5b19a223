"""Errors about texts that UTF-8 cannot store, and about text files that are not UTF-8."""

from __future__ import annotations

import codecs
import os
import shlex

from emollama.errors import UserError

WESTERN, CHINESE = "WINDOWS-1252", "GB18030"  # the encodings in which Excel saves CSV files
HALF_CHARACTER = "half of a character (a lone surrogate), which UTF-8 cannot store. Write the whole character, or remove the half"
_ZIP = b"PK\x03\x04"


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
    if _has_half_characters(raw):
        return UserError(f"{place}: {HALF_CHARACTER}.")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UserError(f"{place}. The file is UTF-16. Convert it: {_command('UTF-16', path)}")
    # A text in one of these encodings is usually valid in the other one too, so only the user can decide.
    other = f"or, if it contains Chinese text, with -f {CHINESE}"
    return UserError(f"{place}. Convert it, if it comes from a Western Windows program: {_command(WESTERN, path)} ({other})")


def _has_half_characters(raw: bytes) -> bool:
    """Return whether a text is UTF-8 except for lone surrogates, which some programs write."""
    try:
        raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _command(encoding: str, path: str) -> str:
    stem, extension = os.path.splitext(path)
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(path)} > {shlex.quote(f'{stem}.utf8{extension}')}"

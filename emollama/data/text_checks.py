"""Detection of files of users that do not exist or whose format differs from the expected one."""

from __future__ import annotations

from emollama.errors import DownloadError
from emollama.json_io import parse_json
from emollama.paths import PATHS


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


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def file_exists(path: str | None) -> bool:
    """Return whether the path is configured and names an existing file."""
    try:
        return path is not None and bool(PATHS.isfile(path))
    except (NotImplementedError, DownloadError):
        # It is not known whether a remote file exists. Its reader reports the error, with the configuration key.
        return True

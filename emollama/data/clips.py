"""Annotation lists, captions and transcripts: small text files read whole into plain tables.

Formats (source: the published MERR and MER2023/2024 files): a list row is ``name [count] [label [valence]]`` separated by
white space; captions are a JSON object keyed by name; transcripts are a CSV with a name and a sentence column.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from emollama.errors import UserError
from emollama.paths import PATHS, read_text, require_file

AnnotationFormat = Literal["auto", "ne", "ncev"]
SENTENCE_COLUMNS = ("sentence", "sentence_en", "english")


@dataclass(frozen=True)
class Clip:
    """One row of an annotation list. ``label`` is the column as written; nothing has been checked against labels yet."""

    name: str
    label: str
    line: int


def read_annotations(path: str, annotation_format: AnnotationFormat = "auto") -> list[Clip]:
    """Read an annotation list in file order.

    Args:
        path: UTF-8 text, no header, blank lines ignored.
        annotation_format: ``ne`` is ``name label``; ``ncev`` is ``name count label [valence]``; ``auto`` tells by the first
            row's width.

    Raises:
        UserError: a row of another width, an unsafe or repeated name, an empty list: names file and line.
    """
    clips: dict[str, Clip] = {}
    for number, row in enumerate(read_text(require_file(path, "annotation_file")).splitlines(), 1):
        fields = row.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if annotation_format == "auto":
            annotation_format = "ne" if len(fields) == 2 else "ncev"
        widths = (2,) if annotation_format == "ne" else (3, 4)
        if len(fields) not in widths:
            expected = " or ".join(str(width) for width in widths)
            raise UserError(f"{where}: {len(fields)} fields in {row!r}, expected {expected} (name [count] label [valence])")
        if len(fields) > 2 and not fields[1].lstrip("-").isdigit():
            raise UserError(f"{where}: the second field of {row!r} is a count of frames, not '{fields[1]}' (labels are one word)")
        name = safe_name(fields[0], where)
        if name in clips:
            raise UserError(f"{where}: clip '{name}' stands on line {clips[name].line} already. Remove one of the two.")
        clips[name] = Clip(name, fields[1] if len(fields) == 2 else fields[2], number)
    if not clips:
        raise UserError(f"{path}: the list is empty. A row is 'name count label [valence]' or 'name label'.")
    return list(clips.values())


def safe_name(name: str, where: str) -> str:
    """The name, if a file called after it stays inside its folder.

    Raises:
        UserError: an absolute name, one that climbs out with ``..``, or one with a NUL byte or a backslash.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise UserError(f"{where}: the clip name {name!r} would leave its folder. Names are relative, without '..'.")
    return name


def read_captions(path: str, field: str, key: str) -> dict[str, str]:
    """Read ``{name: {field: caption, ...}}`` and keep the captions that are non-empty text.

    Args:
        path: the JSON file.
        field: which key of each clip's object is the caption.
        key: the configuration key, for messages.

    Raises:
        UserError: not JSON (with its line), or not an object of objects.
    """
    try:
        table = json.loads(read_text(require_file(path, key)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise UserError(f"{path}: expected one JSON object keyed by clip name, each value an object with '{field}'")
    captions = {name: entry.get(field) for name, entry in table.items()}
    return {name: text for name, text in captions.items() if isinstance(text, str) and text.strip()}


def read_transcripts(path: str) -> dict[str, str]:
    """Read a transcript CSV: a ``name`` column and one of ``sentence``, ``sentence_en``, ``english``.

    An empty cell is a clip without speech and is read as an empty string.

    Raises:
        UserError: columns missing, a row without a name, or two different sentences for one clip.
    """
    text = read_text(require_file(path, "transcription_path"))
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    sentences: dict[str, str] = {}
    try:
        column = _sentence_column(path, list(rows.fieldnames or []))
        for row in rows:
            name, sentence = row["name"], (row[column] or "").strip()
            if not name or None in row:
                raise UserError(
                    f"{path}, line {rows.line_num}: {'no name' if not name else 'more cells than the header has'}."
                    ' A sentence that holds a comma stands in quotes: name,"Why, Tom?"'
                )
            if sentences.setdefault(name, sentence) != sentence:
                raise UserError(f"{path}, line {rows.line_num}: a second, different sentence for '{name}'. Keep one.")
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from None
    return sentences


def _sentence_column(path: str, header: list[str]) -> str:
    column = next((name for name in SENTENCE_COLUMNS if name in header), None)
    if "name" not in header or column is None:
        raise UserError(f"{path}, line 1: the header is {header}; expected 'name' and one of {', '.join(SENTENCE_COLUMNS)}")
    return column


def missing_names(wanted: Iterable[str], present: Container[str]) -> list[str]:
    """The wanted names that are not present, in order."""
    return [name for name in wanted if name not in present]


def file_exists(path: str | None) -> bool:
    """Whether a configured path names a file."""
    return path is not None and bool(PATHS.isfile(path))

"""Readers of annotation files: lists of clips, captions, transcripts and CSV tables.

The formats are those of the published MERR, MER2023/2024, EMER and DFEW files. A line of a list is
``name [count] [label [valence]]``, separated by white space. Captions are a JSON object with clip names as keys. Transcripts and
tables are CSV files with a header.

The readers pass problems of single rows to their ``report`` argument and skip the row. By default, a problem raises an error.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, Literal

from emollama.data.csv_files import read_csv, require_column, split_lines
from emollama.data.problems import Problem, Report, raise_problem
from emollama.data.text_checks import json_format, other_format
from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.listing import abbreviated, listing
from emollama.paths import read_text, require_file
from emollama.text_encoding import LONE_SURROGATE, encodable, escaped, is_encodable, lone_surrogates

AnnotationFormat = Literal["auto", "n", "ne", "ncev"]
WIDTHS = {"n": (1,), "ne": (2,), "ncev": (3, 4)}  # number of fields in a line
DFEW_DIGITS = 5  # names of DFEW's clips have five digits, 00001; its tables omit leading zeros
NO_VALENCE = -10  # value of the valence column of a list for an unknown valence
NAME_COLUMNS = ("name", "names", "video_name")
SENTENCE_COLUMNS = ("sentence", "sentence_en", "english", "subtitles")
RowReader = Callable[[Mapping[str, str]], str]
NameReader = Callable[[str, Sequence[str], Sequence[str]], RowReader]
# A name without any of these characters and without ".." cannot point outside its folder and needs no further check.
_SUSPICIOUS = {"/", "\\", *map(chr, [*range(32), 127])}


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of an annotation list or table.

    Attributes:
        name: the clip's name, which is also the name of its feature files.
        label: the label as written in the file, not yet mapped or checked; "" if the file has none.
        line: line number in the file.
        columns: the other cells of the row by column name.
    """

    name: str
    label: str
    line: int
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """All texts of a dataset.

    Attributes:
        clips: the clips in file order.
        sentences: clip name -> spoken sentence; None if no transcript is configured.
        captions: task -> clip name -> reference answer.
    """

    clips: Sequence[Clip]
    sentences: Mapping[str, str] | None = None
    captions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_annotations(
    path: str,
    annotation_format: AnnotationFormat = "auto",
    report: Report = raise_problem,
    key: str = "annotation_file",
) -> list[Clip]:
    """Read an annotation list in file order.

    Args:
        path: UTF-8 text without a header; blank lines are ignored.
        annotation_format: ``n`` is ``name``; ``ne`` is ``name label``; ``ncev`` is ``name count label [valence]``; ``auto``
            chooses by the number of fields in the first line.
        report: receives lines with another number of fields, unsafe names and repeated names, with file and line number.
        key: the configuration key of the path, for messages.

    Raises:
        UserError: If no line is usable, or by :func:`raise_problem`.
    """
    clips: dict[str, Clip] = {}
    text = read_text(require_file(path, key))
    expected = "Specify the list, with lines 'name count label [valence]' or 'name label'."
    if detected := json_format(text):
        raise UserError(f"{key}: {path} is {detected}. {expected}")
    if text.partition(",")[0].strip() in NAME_COLUMNS:
        raise UserError(f"{key}: {path} is a CSV table. {expected} The dataset 'custom' reads tables.")
    for line_number, line in enumerate(split_lines(text), 1):
        fields = line.split()
        if not fields:
            continue
        if annotation_format == "auto":
            annotation_format = "n" if len(fields) == 1 else "ne" if len(fields) == 2 else "ncev"
        try:
            clip = _parse_line(fields, line, annotation_format, line_number)
            _add_clip(clips, clip)
        except ValueError as error:
            report(Problem("list", f"{path}, line {line_number}: {error}", (fields[0],)))
    if not clips:
        raise UserError(f"{path}: the list has no usable line. Expected lines 'name count label [valence]' or 'name label'.")
    return list(clips.values())


def _parse_line(fields: list[str], line: str, annotation_format: AnnotationFormat, line_number: int) -> Clip:
    widths = WIDTHS[annotation_format]
    if len(fields) not in widths:
        expected = " or ".join(str(width) for width in widths)
        raise ValueError(
            f"expected {expected} fields (name [count] [label [valence]]; names must not contain spaces),"
            f" got {len(fields)} in {line!r}"
        )
    if len(fields) <= 2:
        return Clip(safe_name(fields[0]), fields[1] if fields[1:] else "", line_number)
    if not fields[1].removeprefix("-").isdecimal():
        raise ValueError(f"the second field of {line!r} must be a count of frames, got '{fields[1]}' (labels are one word)")
    return Clip(safe_name(fields[0]), sys.intern(fields[2]), line_number, _list_columns(*fields[1::2]))


@functools.lru_cache(1 << 16)
def _list_columns(*cells: str) -> Mapping[str, str]:
    """Return the other columns of a line. Lines with the same ones share the object, which takes less memory."""
    return dict(zip(("count", "valence"), cells, strict=False))


def _add_clip(clips: dict[str, Clip], clip: Clip) -> None:
    if clip.name in clips:
        raise ValueError(f"clip '{clip.name}' is already listed on line {clips[clip.name].line}. Remove one of the two.")
    clips[clip.name] = clip


def safe_name(name: str) -> str:
    """Return the name if a file with this name stays inside its folder.

    Raises:
        ValueError: If the name is absolute, or contains ``..``, a backslash, a control character or a lone surrogate.
    """
    if not is_encodable(name):
        raise ValueError(f"the clip name '{escaped(name)}' contains {LONE_SURROGATE}")
    if name and not _SUSPICIOUS & {*name} and ".." not in name:
        return name
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"the clip name {name!r} points outside its folder. Names must be relative and must not contain '..'.")
    if (_SUSPICIOUS - {"/"}) & {*name}:
        raise ValueError(f"the clip name {name!r} contains a control character")
    return name


def read_clip_table(
    path: str, label_column: str | None, report: Report = raise_problem, key: str = "annotation_file"
) -> list[Clip]:
    """Read a CSV table of clips with one of the columns :data:`NAME_COLUMNS` and any other columns.

    Args:
        path: the CSV file.
        label_column: the column with the label; None if the table has no labels.
        report: receives rows without a name, unsafe names and repeated names, with file and line number.
        key: the configuration key of the path, for messages.

    Raises:
        UserError: If the table has no usable row, or its header lacks one of these columns.
    """
    clips: dict[str, Clip] = {}
    header, rows = read_csv(path, key, report)
    name_column = require_column(path, header, NAME_COLUMNS)
    if label_column is not None:
        require_column(path, header, [label_column])
    for line_number, row in rows:
        name = row.pop(name_column)
        try:
            _add_clip(clips, Clip(safe_name(name), row.pop(label_column, "") if label_column else "", line_number, row))
        except ValueError as error:
            report(Problem("list", f"{path}, line {line_number}: {error if name else 'the row has no name'}", (name,)))
    if not clips:
        raise UserError(f"{path}: no usable row. Expected a header with {' or '.join(NAME_COLUMNS)}, then one row per clip.")
    return list(clips.values())


def read_captions(path: str, field: str, key: str, report: Report = raise_problem) -> dict[str, str]:
    """Read the captions that are non-empty text from ``{name: {field: caption, ...}}``.

    Args:
        path: the JSON file.
        field: the key of the caption in each clip's object.
        key: the configuration key, for messages.
        report: receives clips whose value is not an object, and captions and names with lone surrogates.

    Raises:
        UserError: If the file is not JSON (the message has the line number), contains a clip name twice, or is not an object.
    """
    table = read_json(require_file(path, key), lone_surrogates_allowed=True)
    expected = f"expected one JSON object with clip names as keys, and objects with '{field}' as values"
    if not isinstance(table, dict):
        raise UserError(f"{path}: {expected}")
    entries = {name: entry for name, entry in table.items() if isinstance(entry, dict)}
    if invalid := [escaped(name) for name in table if name not in entries]:
        report(Problem("caption", f"{path}: {expected}; got other values for {listing(invalid, 'clip')}", tuple(invalid)))
    captions = {name: entry.get(field) for name, entry in entries.items()}
    texts = {name: text for name, text in captions.items() if isinstance(text, str) and text.strip()}
    if halves := [name for name, text in texts.items() if not is_encodable(name + text)]:
        text = f"{listing(map(escaped, halves), 'clip')}: the name or '{field}' contains {LONE_SURROGATE}"
        report(Problem("caption", f"{path}, {text}.", tuple(map(encodable, halves))))
    return {encodable(name): encodable(text) for name, text in texts.items()}


def read_json(path: str, *, lone_surrogates_allowed: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        lone_surrogates_allowed: accept texts with lone surrogates, which the caller replaces or reports.

    Raises:
        UserError: If the text is not JSON (the message has the line number), is nested too deeply, contains a text with a lone
            surrogate, or has an object with a repeated key.
    """
    text = read_text(path)
    try:
        value = parse_json(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        if detected := other_format(text, error.pos):
            expected = "expected a JSON file with a single object or list. Correct the path, or convert it."
            raise UserError(f"{path} is {detected}; {expected}") from None
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}. JSON does not allow comments.") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not lone_surrogates_allowed and (places := lone_surrogates(text, value)):
        raise UserError(f"{path}: {abbreviated(places)}: {LONE_SURROGATE}.")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{escaped(repeated)}' appears twice. Remove one of the two.")
    return table


def column_reader(path: str, header: Sequence[str], columns: Sequence[str]) -> RowReader:
    """Return a function from a row to its cell in the first of these columns that the header contains.

    Raises:
        UserError: If the header contains none of them.
    """
    return itemgetter(require_column(path, header, columns))


def read_transcripts(path: str, report: Report = raise_problem, name_reader: NameReader = column_reader) -> dict[str, str]:
    """Read a transcript CSV with a ``name`` column and one of :data:`SENTENCE_COLUMNS`.

    An empty cell means a clip without speech and is read as an empty string.

    Args:
        path: the CSV file.
        report: receives rows without a name, and clips with two different sentences.
        name_reader: function from path, header and :data:`NAME_COLUMNS` to a function from a row to the clip's name.

    Raises:
        UserError: If a column is missing and, by default, if a row has no name or a clip has two different sentences.
    """
    sentences: dict[str, str] = {}
    header, rows = read_csv(path, "transcription_path", report)
    name_of, column = name_reader(path, header, NAME_COLUMNS), require_column(path, header, SENTENCE_COLUMNS)
    for line_number, row in rows:
        try:
            name, sentence = name_of(row), row[column]
        except ValueError as error:
            report(Problem("transcript", f"{path}, line {line_number}: {error}"))
            continue
        if not name:
            report(Problem("transcript", f"{path}, line {line_number}: the row has no name"))
        elif sentences.setdefault(name, sentence) != sentence:
            text = f"'{name}' already has a different sentence. Remove one of the two rows."
            report(Problem("transcript", f"{path}, line {line_number}: {text}", (name,)))
    return sentences


def padded_name(name: str, digits: int) -> str:
    """Return a clip's name; if it is a number, pad it with zeros to this number of digits."""
    return name.zfill(digits) if name.isdecimal() else name

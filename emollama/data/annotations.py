"""Annotation lists, captions, transcripts and tables: small text files read whole.

Formats (source: the published MERR, MER2023/2024, EMER and DFEW files): a list row is ``name [count] [label [valence]]``
separated by white space; captions are a JSON object keyed by name; transcripts and tables are CSV files with a header.

Row by row, what is wrong goes to ``report``, and the reader goes on without the row; by default the first such row is an error.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from emollama.data.problems import Problem, Report, refuse
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.paths import PATHS, read_text, require_file

AnnotationFormat = Literal["auto", "n", "ne", "ncev"]
WIDTHS = {"n": (1,), "ne": (2,), "ncev": (3, 4)}  # fields of a row
LABELS = ("happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt")
DFEW_LABELS = {"1": "happy", "2": "sad", "3": "neutral", "4": "angry", "5": "surprise", "6": "disgust", "7": "fear"}
NO_VALENCE = -10  # in the valence column of a list: not known
NAME_COLUMNS = ("name", "names", "video_name")
SENTENCE_COLUMNS = ("sentence", "sentence_en", "english", "subtitles")
_SUSPICIOUS = {"/", "\\", *map(chr, [*range(32), 127])}  # what a name that leaves its folder needs, unless it is ".."


@dataclass(frozen=True)
class Clip:
    """One row of an annotation list or table. ``label`` is as written; nothing has been checked against labels yet.

    Attributes:
        name: which feature files are called after.
        label: "" where the file has none.
        line: where the row stands in its file.
        columns: the row's other cells by column.
    """

    name: str
    label: str
    line: int
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Everything written about the clips of a dataset.

    Attributes:
        clips: in file order.
        sentences: name -> what is said; None where no transcript is configured.
        captions: task -> name -> the answer to it.
    """

    clips: list[Clip]
    sentences: dict[str, str] | None = None
    captions: dict[str, dict[str, str]] = field(default_factory=dict)


def read_annotations(path: str, annotation_format: AnnotationFormat = "auto", report: Report = refuse) -> list[Clip]:
    """Read an annotation list in file order.

    Args:
        path: UTF-8 text, no header, blank lines ignored.
        annotation_format: ``n`` is ``name``; ``ne`` is ``name label``; ``ncev`` is ``name count label [valence]``; ``auto`` tells
            by the first row's width.
        report: told of rows of another width, unsafe names and repeated ones, with file and line.

    Raises:
        UserError: no usable row, or what :func:`refuse` refuses.
    """
    clips: dict[str, Clip] = {}
    for number, row in enumerate(_lines(read_text(require_file(path, "annotation_file"))), 1):
        fields = row.split()
        if not fields:
            continue
        if annotation_format == "auto":
            annotation_format = "n" if len(fields) == 1 else "ne" if len(fields) == 2 else "ncev"
        try:
            clip = _listed(fields, row, annotation_format, number)
            _enter(clips, clip)
        except ValueError as error:
            report(Problem("list", f"{path}, line {number}: {error}", (fields[0],)))
    if not clips:
        raise UserError(f"{path}: the list is empty, or no row is usable. A row is 'name count label [valence]' or 'name label'.")
    return list(clips.values())


def _lines(text: str) -> list[str]:
    """The lines as an editor counts them; ``str.splitlines`` would break at form feeds and other signs too."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _listed(fields: list[str], row: str, annotation_format: AnnotationFormat, number: int) -> Clip:
    widths = WIDTHS[annotation_format]
    if len(fields) not in widths:
        expected = " or ".join(str(width) for width in widths)
        raise ValueError(
            f"{len(fields)} fields in {row!r}, expected {expected} (name [count] label [valence]; no space in names)"
        )
    if len(fields) <= 2:
        return Clip(safe_name(fields[0]), fields[1] if fields[1:] else "", number)
    if not fields[1].removeprefix("-").isdecimal():
        raise ValueError(f"the second field of {row!r} is a count of frames, not '{fields[1]}' (labels are one word)")
    return Clip(safe_name(fields[0]), fields[2], number, dict(zip(("count", "valence"), fields[1::2], strict=False)))


def _enter(clips: dict[str, Clip], clip: Clip) -> None:
    if clip.name in clips:
        raise ValueError(f"clip '{clip.name}' stands on line {clips[clip.name].line} already. Remove one of the two.")
    clips[clip.name] = clip


def safe_name(name: str) -> str:
    """The name, if a file called after it stays inside its folder.

    Raises:
        ValueError: an absolute name, one that climbs out with ``..``, or one with a backslash or a control character.
    """
    if name and not _SUSPICIOUS & {*name} and ".." not in name:
        return name
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"the clip name {name!r} would leave its folder. Names are relative, without '..'.")
    if (_SUSPICIOUS - {"/"}) & {*name}:
        raise ValueError(f"the clip name {name!r} holds a control character")
    return name


def read_rows(path: str, key: str, report: Report = refuse) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header of a CSV file, and (line, cells by column) of each row; cells are stripped, empty rows passed over.

    Args:
        path: UTF-8, separated by commas; a cell that holds a comma stands in quotes.
        key: the configuration key, for messages.
        report: told of rows with more or fewer cells than the header has.

    Raises:
        UserError: no such file, no CSV, semicolons or tabs in place of commas, or a header that repeats a column.
    """
    text = read_text(require_file(path, key))
    first = _lines(text)[0]
    if "," not in first and (separator := next((sign for sign in ";\t" if sign in first), None)):
        told = "';'" if separator == ";" else "tabs"
        raise UserError(f"{path}, line 1: the columns seem to be separated by {told}. Save it as CSV with commas.")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, begin = [], 1
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        if len(set(header)) < len(header):
            raise UserError(f"{path}, line 1: the header names a column twice: {abbreviated(header)}")
        reader.fieldnames = header
        begin = reader.line_num + 1
        for row in reader:
            begin = reader.line_num + 1
            if None in row or None in row.values():
                fault = 'more cells than the header has. A cell that holds a comma stands in quotes: name,"Why, Tom?"'
                if None not in row:
                    fault = "fewer cells than the header has. An empty cell needs its comma: name,"
                report(Problem("list", f"{path}, line {reader.line_num}: {fault}", (row[header[0]],)))
            elif any(row.values()):
                rows.append((reader.line_num, {column: cell.strip() for column, cell in row.items()}))
    except csv.Error as error:
        begun = f" (in the row that begins on line {begin})" if begin < reader.reader.line_num else ""
        raise UserError(f"{path}, line {reader.reader.line_num}: not valid CSV: {error}{begun}") from None
    return header, rows


def column_of(path: str, header: Sequence[str], known: Sequence[str]) -> str:
    """The first of the known columns that a header has.

    Raises:
        UserError: it has none of them.
    """
    for name in known:
        if name in header:
            return name
    raise UserError(f"{path}, line 1: the header is {abbreviated(header)}; expected one of the columns {', '.join(known)}")


def read_clip_table(path: str, label_column: str | None, report: Report = refuse) -> list[Clip]:
    """Read a CSV table of clips: a column of :data:`NAME_COLUMNS`, and any others.

    Args:
        path: the file.
        label_column: holds the label; None where there is none.
        report: told of rows without a name, unsafe names and repeated ones, with file and line.

    Raises:
        UserError: no row, or a header without these columns.
    """
    clips: dict[str, Clip] = {}
    header, rows = read_rows(path, "annotation_file", report)
    name_column = column_of(path, header, NAME_COLUMNS)
    if label_column is not None:
        column_of(path, header, [label_column])
    for line, row in rows:
        name = row.pop(name_column)
        try:
            _enter(clips, Clip(safe_name(name), row.pop(label_column, "") if label_column else "", line, row))
        except ValueError as error:
            report(Problem("list", f"{path}, line {line}: {error if name else 'the row has no name'}", (name,)))
    if not clips:
        raise UserError(f"{path}: no usable row. A header with {' or '.join(NAME_COLUMNS)} comes first, then a row a clip.")
    return list(clips.values())


def read_captions(path: str, field: str, key: str, report: Report = refuse) -> dict[str, str]:
    """Read ``{name: {field: caption, ...}}`` and keep the captions that are non-empty text.

    Args:
        path: the JSON file.
        field: which key of each clip's object is the caption.
        key: the configuration key, for messages.
        report: told of clips whose entry is no object.

    Raises:
        UserError: not JSON (with its line), a clip named twice, or no object.
    """
    table = read_json(require_file(path, key))
    expected = f"expected one JSON object keyed by clip name, each value an object with '{field}'"
    if not isinstance(table, dict):
        raise UserError(f"{path}: {expected}")
    entries = {name: entry for name, entry in table.items() if isinstance(entry, dict)}
    if strange := [name for name in table if name not in entries]:
        report(Problem("caption", f"{path}: {expected}; no object stands under {listing(strange)}", tuple(strange)))
    captions = {name: entry.get(field) for name, entry in entries.items()}
    return {name: text for name, text in captions.items() if isinstance(text, str) and text.strip()}


def read_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: not JSON (with its line), nested without end, or an object with the same key twice.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_no_repetition)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}. JSON holds no comments.") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for JSON of this kind") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}. Keep one.") from None


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands in it twice")
    return table


def read_transcripts(path: str, report: Report = refuse) -> dict[str, str]:
    """Read a transcript CSV: a ``name`` column and one of :data:`SENTENCE_COLUMNS`.

    An empty cell is a clip without speech and is read as an empty string.

    Raises:
        UserError: columns missing; a row without a name, or two different sentences for one clip, unless reported.
    """
    sentences: dict[str, str] = {}
    header, rows = read_rows(path, "transcription_path", report)
    name_column, column = column_of(path, header, NAME_COLUMNS), column_of(path, header, SENTENCE_COLUMNS)
    for line, row in rows:
        name, sentence = row[name_column], row[column]
        if not name:
            report(Problem("transcript", f"{path}, line {line}: the row has no name"))
        elif sentences.setdefault(name, sentence) != sentence:
            report(Problem("transcript", f"{path}, line {line}: a second, different sentence for '{name}'. Keep one.", (name,)))
    return sentences


def missing_names(wanted: Iterable[str], present: Container[str]) -> list[str]:
    """The wanted names that are not present, in order."""
    return [name for name in wanted if name not in present]


def file_exists(path: str | None) -> bool:
    """Whether a configured path names a file."""
    try:
        return path is not None and bool(PATHS.isfile(path))
    except NotImplementedError:  # a URL: whoever reads it says so, with its key
        return True

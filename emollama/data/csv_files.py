"""CSV files with a header: the reader, and the only writer.

Spreadsheet programs execute cells such as ``=HYPERLINK(...)`` as formulas. The writer therefore puts an apostrophe in front of
text that begins like a formula, unless programs read the file as data: they would take the apostrophe for a part of the text.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emollama.data.problems import Problem, Report, raise_problem
from emollama.data.text_checks import json_format
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.paths import atomic_write, read_text, require_file

# Text that already begins with an apostrophe and a formula gets another one, so that it can be restored.
_BEGIN = r"[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n]"  # some programs also read the full-width characters = + - @
_FORMULA = re.compile(f"'*{_BEGIN}")
_ESCAPED = re.compile(f"'+{_BEGIN}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?%?")


def read_csv(path: str, key: str, report: Report = raise_problem) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read the header of a CSV file and the (line number, cells by column) of each row.

    Cells are stripped and empty rows are skipped.

    Args:
        path: UTF-8 text, separated by commas; a cell that contains a comma is enclosed in quotes.
        key: the configuration key, for messages.
        report: receives rows with more or fewer cells than the header.

    Raises:
        UserError: If the file does not exist, is not CSV (the message says if it is JSON), uses semicolons or tabs as separators,
            or repeats a column.
    """
    text = read_text(require_file(path, key))
    if detected := json_format(text):
        text = f"{key}: {path} is {detected}; expected a CSV table, whose first line names the columns"
        raise UserError(f"{text}. Convert the file, or correct the path.")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: the line contains a null character. Remove it, or save the file again.")
    first = split_lines(text)[0]
    if "," not in first and (separator := next((character for character in ";\t" if character in first), None)):
        name = "';'" if separator == ";" else "tabs"
        raise UserError(f"{path}, line 1: the columns seem to be separated by {name}. Save the file as CSV with commas.")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, begin = [], 1
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        if len(set(header)) < len(header):
            raise UserError(f"{path}, line 1: the header contains a column twice: {abbreviated(header)}")
        reader.fieldnames = header
        begin = reader.line_num + 1
        for row in reader:
            begin = reader.line_num + 1
            if None in row or None in row.values():
                fault = 'more cells than columns. Enclose a cell that contains a comma in quotes: name,"Why, Tom?"'
                if None not in row:
                    fault = "fewer cells than columns. Write a comma for each empty cell, too: name,"
                report(Problem("list", f"{path}, line {reader.line_num}: {fault}", (row[header[0]],)))
            elif any(row.values()):
                rows.append((reader.line_num, {column: cell.strip() for column, cell in row.items()}))
    except csv.Error as error:
        # The csv module reports an unclosed quote at the end of the file, so the message also names the row's first line.
        start = f" (in the row that begins on line {begin})" if begin < reader.reader.line_num else ""
        raise UserError(f"{path}, line {reader.reader.line_num}: not valid CSV: {error}{start}") from None
    return header, rows


def require_column(path: str, header: Sequence[str], columns: Sequence[str]) -> str:
    """Return the first of the accepted column names that the header contains.

    Raises:
        UserError: If the header contains none of them.
    """
    for name in columns:
        if name in header:
            return name
    raise UserError(f"{path}, line 1: the header is {abbreviated(header)}; expected one of the columns {', '.join(columns)}")


def split_lines(text: str) -> list[str]:
    """Split a text into lines as editors number them; ``str.splitlines`` also splits at form feeds and other characters."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]], *, escape: bool = True, byte_order_mark: bool = False) -> None:
    """Write a CSV file with its header, which is the first row.

    Args:
        path: the file. It appears only when it is complete.
        rows: the cells of each row.
        escape: whether to apply :func:`escape_formula` to every cell. False only for files that programs read as data.
        byte_order_mark: whether to begin with the mark by which spreadsheet programs detect UTF-8.
    """
    with atomic_write(path) as file:
        if byte_order_mark:
            file.write("\ufeff")
        csv.writer(file).writerows([escape_formula(cell) for cell in row] if escape else row for row in rows)


def escape_formula(cell: Any) -> Any:
    """Return the cell, with an apostrophe in front if it is text that a spreadsheet would execute; -0.5 is a number."""
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) is not None and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def restore_formula(cell: str) -> str:
    """Return the text that :func:`escape_formula` was applied to."""
    return cell[1:] if _ESCAPED.match(cell) else cell

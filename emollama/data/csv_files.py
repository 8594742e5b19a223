"""CSV files with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from emollama.data.problems import Problem, Report, raise_problem
from emollama.data.text_checks import json_format
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.paths import read_text, require_file


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

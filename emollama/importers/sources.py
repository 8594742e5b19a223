"""Readers that several importers share: rows of CSV files by clip name, and the files of a folder tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from emollama.data.annotations import NAME_COLUMNS
from emollama.data.csv_files import read_csv
from emollama.data.problems import Problem
from emollama.disk import remedy
from emollama.errors import UserError
from emollama.importers.collector import Collector


class SourceRow(NamedTuple):
    """A row of a CSV file.

    Attributes:
        where: file and line, for messages.
        cells: column -> text.
    """

    where: str
    cells: dict[str, str]


class Sheet(NamedTuple):
    """A CSV file.

    Attributes:
        path: the file.
        header: the columns.
        rows: (line number, {column: text}) of each row.
    """

    path: str
    header: list[str]
    rows: list[tuple[int, dict[str, str]]]

    @classmethod
    def read(cls, path: str, collector: Collector) -> Sheet:
        """Read a file. Invalid rows are reported to the collector.

        Raises:
            UserError: If the file does not exist, is not a CSV file, has a column twice, or contains no row at all.
        """
        problems_before = len(collector.problems)
        header, rows = read_csv(path, "FILE", collector.report)
        if not rows and len(collector.problems) == problems_before:
            raise UserError(f"{path}: contains no rows. Expected a header with the columns and then one row per clip.")
        return cls(path, header, rows)


def rows_by_clip(
    sheet: Sheet, columns: Sequence[str], collector: Collector, *, name_columns: Sequence[str] = NAME_COLUMNS,
    name_of: Callable[[str], str] = str,
) -> dict[str, SourceRow]:  # fmt: skip
    """Return the rows by clip name.

    Identical rows of a clip count as one. Different rows of a clip are a problem, and the clip is left out.

    Args:
        sheet: the file.
        columns: the columns to compare and return; columns that the file does not have are ignored.
        collector: problems are added to it. Its ``name_format`` builds the names, if it is not None.
        name_columns: possible columns of the clip name; the first one in the header is used.
        name_of: converts a name in the file to the name of the clip.

    Returns:
        Clip name -> row.

    Raises:
        UserError: If the file has no column of names.
    """
    written_name = collector.name_reader(sheet.path, sheet.header, name_columns)
    rows: dict[str, SourceRow] = {}
    contradicted = set()
    for line, row in sheet.rows:
        where = f"{sheet.path}, line {line}"
        try:
            name = name_of(written_name(row))
        except ValueError as error:
            collector.report(Problem("name", f"{where}: {error}"))
            continue
        cells = {column: row[column] for column in columns if column in row}
        if not collector.is_usable(name, where):
            continue
        first = rows.setdefault(name, SourceRow(where, cells))
        if first.cells != cells:
            contradicted.add(name)
            collector.report(
                Problem("repeated", f"{where}: '{name}' has other values than in {first.where}. Keep one row.", (name,))
            )
        elif first.where != where:
            collector.leave_out(f"identical rows repeated in {sheet.path}", name)
    return {name: row for name, row in rows.items() if name not in contradicted}


def files_below(folder: str, collector: Collector) -> Iterator[Path]:
    """Yield the files of a folder tree in order, without hidden files and folders.

    Links to folders are not followed, and are reported as left out. A folder that cannot be read is a problem.

    Raises:
        UserError: If the folder does not exist.
    """
    if not os.path.isdir(folder):
        raise UserError(f"FOLDER: no folder '{folder}' (current directory: {os.getcwd()}). Correct the path.")

    def report_unreadable(error: OSError) -> None:
        text = f"{error.filename}: the folder cannot be read ({error.strerror}), so its files are missing."
        collector.report(Problem("folder", f"{text} {remedy(error)}"))

    for root, folders, files in os.walk(folder, onerror=report_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(root, name)):
                collector.leave_out("links to folders, which are not followed", os.path.join(root, name))
        for name in sorted(files):
            path = Path(root, name)
            if name.startswith("."):
                continue
            try:
                str(path).encode()
                yield path
            except UnicodeEncodeError:
                collector.report(Problem("name", f"{str(path)!a}: the name is not UTF-8. Rename the file."))

"""Ways into a source that several kinds share: CSV files by clip name, files below a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from emollama.data.annotations import NAME_COLUMNS, column_of, read_rows
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector


class SourceRow(NamedTuple):
    """A row of a CSV file: where it stands, and its cells by column."""

    where: str
    cells: dict[str, str]


class Sheet(NamedTuple):
    """A CSV file: its columns, and (line, cells by column) of each row."""

    path: str
    header: list[str]
    rows: list[tuple[int, dict[str, str]]]

    @classmethod
    def read(cls, path: str, collector: Collector) -> Sheet:
        """Read a file.

        Raises:
            UserError: no such file, no CSV, a column twice, or no row (rows that are all faulty are problems).
        """
        faults = len(collector.problems)
        header, rows = read_rows(path, "FILE", collector.report)
        if not rows and len(collector.problems) == faults:
            raise UserError(f"{path}: no row in it. The first line names the columns, then comes a row a clip.")
        return cls(path, header, rows)


def rows_by_name(
    sheet: Sheet, columns: Sequence[str], collector: Collector, *, name_columns: Sequence[str] = NAME_COLUMNS,
    name_of: Callable[[str], str] = str,
) -> dict[str, SourceRow]:  # fmt: skip
    """The rows by clip, with the cells of these columns as far as the file has them.

    A clip that stands there twice with the same cells is taken once; one with different cells is a problem and not taken.

    Args:
        name_columns: where the name stands: the first of these that the header has.
        name_of: the clip's name, of the name as written.

    Raises:
        UserError: no column of names.
    """
    name_column = column_of(sheet.path, sheet.header, name_columns)
    rows: dict[str, SourceRow] = {}
    contradicted = set()
    for line, row in sheet.rows:
        where, name = f"{sheet.path}, line {line}", name_of(row[name_column])
        cells = {column: row[column] for column in columns if column in row}
        if not collector.is_usable(name, where):
            continue
        first = rows.setdefault(name, SourceRow(where, cells))
        if first.cells != cells:
            contradicted.add(name)
            collector.report(
                Problem("repeated", f"{where}: '{name}' says something else than in {first.where}. Keep one.", (name,))
            )
        elif first.where != where:
            collector.leave_out(f"repeated rows of {sheet.path} that say the same", name)
    return {name: row for name, row in rows.items() if name not in contradicted}


def files_below(folder: str, collector: Collector) -> Iterator[Path]:
    """Files anywhere below a folder in order; hidden ones are passed over, linked folders are not entered but told.

    A folder that cannot be read is a problem.

    Raises:
        UserError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"FOLDER: no folder '{folder}' (working folder: {os.getcwd()}). Correct the path.")

    def unread(error: OSError) -> None:
        text = f"{error.filename}: the folder cannot be read ({error.strerror}), so nothing below it was looked at."
        collector.report(Problem("folder", f"{text} Correct its permissions."))

    for root, folders, files in os.walk(folder, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(root, name)):
                collector.leave_out("links to folders, which are not entered", os.path.join(root, name))
        for name in sorted(files):
            path = Path(root, name)
            if name.startswith("."):
                continue
            try:
                str(path).encode()
                yield path
            except UnicodeEncodeError:
                collector.report(Problem("name", f"{str(path)!a}: the name is not UTF-8. Rename the file."))

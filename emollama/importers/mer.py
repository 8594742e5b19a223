"""``mer2024``, ``mer2025``: the tables of the MER challenges, told apart by their headers.

Source: the published files. ``name,discrete[,valence]`` holds labels, ``name,openset`` words without a fixed vocabulary (a list
in brackets in the cell), ``name,reason`` descriptions, ``name`` alone the candidates of a test set.
"""

from __future__ import annotations

from collections.abc import Sequence

from emollama.data.annotations import NAME_COLUMNS, SENTENCE_COLUMNS
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry, valence_of
from emollama.importers.labels import NO_LABEL
from emollama.importers.sources import Sheet, SourceRow, rows_by_name

KINDS = ("discrete", "openset", "reason")
Rows = dict[str, SourceRow]


def read(paths: Sequence[str], collector: Collector) -> None:
    """Take the clips of one or several tables, joined by name.

    A table of labels, where there is one, says which clips are taken; else all of all tables are, without labels.

    Raises:
        UserError: a header that is none of these, or two tables of one kind.
    """
    tables: dict[str, Rows] = {}
    for path in paths:
        sheet = Sheet.read(path, collector)
        kind = _kind(sheet)
        if kind in tables:
            raise UserError(f"{path}: a second table with the column '{kind}'. Import the two one after the other.")
        tables[kind] = rows_by_name(sheet, [kind, "valence"] if kind == "discrete" else [kind], collector)
    labelled = tables.get("discrete")
    everyone = dict.fromkeys(name for rows in tables.values() for name in rows)
    names = everyone if labelled is None else labelled
    for name in everyone:
        if name not in names:
            collector.leave_out("clips without a usable row in the table of labels", name)
    for name in names:
        _take(name, {kind: rows[name] for kind, rows in tables.items() if name in rows}, collector)


def _kind(sheet: Sheet) -> str:
    path, header, _ = sheet
    kind = next((column for column in KINDS if column in header), None)
    if kind is None and set(header) & set(SENTENCE_COLUMNS):
        raise UserError(f"{path}: a table of sentences. Give it as --transcripts, beside a table of labels, words or reasons.")
    if kind is None and not (len(header) == 1 and header[0] in NAME_COLUMNS):
        expected = ", ".join(f"name,{column}" for column in ("discrete[,valence]", "openset", "reason"))
        raise UserError(f"{path}, line 1: the header is {','.join(header)}; expected {expected}, or name alone")
    return kind or "name"


def _take(name: str, rows: Rows, collector: Collector) -> None:
    label: str | None = NO_LABEL
    valence = None
    if "discrete" in rows:
        where, cells = rows["discrete"]
        label = collector.label(cells["discrete"], name, where)
        try:
            valence = valence_of(cells.get("valence"))
        except ValueError as error:
            collector.report(Problem("valence", f"{where}: {error}", (name,)))
            return
    if label is not None:
        reason = rows["reason"].cells["reason"] if "reason" in rows else ""
        openset = words_of(rows["openset"].cells["openset"]) if "openset" in rows else None
        fine = {"smp_reason_caption": reason} if reason else None
        collector.take(Entry(name, label, valence, fine=fine, openset=openset))


def words_of(cell: str) -> list[str]:
    """The words of ``['angry', 'mad']``, with or without quotes and brackets, without repetition, in order."""
    words = (word.strip().strip("'\"").strip() for word in cell.strip().removeprefix("[").removesuffix("]").split(","))
    return list(dict.fromkeys(word for word in words if word))

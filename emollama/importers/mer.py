"""``mer2024``, ``mer2025``: the tables of the MER challenges, which are recognized by their headers.

Source: the published files. ``name,discrete[,valence]`` contains labels, ``name,openset`` words without a fixed vocabulary (a
list in brackets in one cell), ``name,reason`` descriptions, and ``name`` alone the candidates of a test set.
"""

from __future__ import annotations

from collections.abc import Sequence

from emollama.data.annotations import NAME_COLUMNS, SENTENCE_COLUMNS
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.importers.collector import Collector, Entry, parse_valence
from emollama.importers.labels import NO_LABEL
from emollama.importers.sources import Sheet, SourceRow, rows_by_clip

KINDS = ("discrete", "openset", "reason")
RowsByClip = dict[str, SourceRow]


def read(paths: Sequence[str], collector: Collector) -> None:
    """Read the clips of one or several tables, joined by name.

    If one of the tables contains labels, only its clips are imported. Otherwise, the clips of all tables are imported without
    labels.

    Raises:
        UserError: If a table has another header, or two tables are of the same kind.
    """
    tables: dict[str, RowsByClip] = {}
    for path in paths:
        sheet = Sheet.read(path, collector)
        kind = _kind(sheet)
        if kind in tables:
            raise UserError(f"{path}: this is the second table with the column '{kind}'. Import them with separate commands.")
        tables[kind] = rows_by_clip(sheet, [kind, "valence"] if kind == "discrete" else [kind], collector)
    labelled = tables.get("discrete")
    all_names = dict.fromkeys(name for rows in tables.values() for name in rows)
    names = all_names if labelled is None else labelled
    for name in all_names:
        if name not in names:
            collector.leave_out("clips without a usable row in the table of labels", name)
    for name in names:
        _add_clip(name, {kind: rows[name] for kind, rows in tables.items() if name in rows}, collector)


def _kind(sheet: Sheet) -> str:
    path, header, _ = sheet
    kind = next((column for column in KINDS if column in header), None)
    if kind is None and set(header) & set(SENTENCE_COLUMNS):
        raise UserError(
            f"{path}: this is a table of sentences. Pass it with --transcripts, and a table of labels, words or reasons as FILE."
        )
    if kind is None and not (len(header) == 1 and header[0] in NAME_COLUMNS):
        expected = ", ".join(f"name,{column}" for column in ("discrete[,valence]", "openset", "reason"))
        raise UserError(f"{path}, line 1: the header is {','.join(header)}; expected {expected}, or name alone")
    return kind or "name"


def _add_clip(name: str, row_of_kind: RowsByClip, collector: Collector) -> None:
    label: str | None = NO_LABEL
    valence = None
    if "discrete" in row_of_kind:
        where, cells = row_of_kind["discrete"]
        label = collector.label(cells["discrete"], name, where)
        try:
            valence = parse_valence(cells.get("valence"))
        except ValueError as error:
            collector.report(Problem("valence", f"{where}: {error}", (name,)))
            return
    if label is not None:
        reason = row_of_kind["reason"].cells["reason"] if "reason" in row_of_kind else ""
        openset = split_words(row_of_kind["openset"].cells["openset"]) if "openset" in row_of_kind else None
        fine = {"smp_reason_caption": reason} if reason else None
        collector.add(Entry(name, label, valence, fine=fine, openset=openset))


def split_words(cell: str) -> list[str]:
    """Return the words of a cell such as ``['angry', 'mad']`` in order, without duplicates. Quotes and brackets are optional."""
    words = (word.strip().strip("'\"").strip() for word in cell.strip().removeprefix("[").removesuffix("]").split(","))
    return list(dict.fromkeys(word for word in words if word))

"""A sweep out of its files: a row a checkpoint, a column a metric, as CSV, Markdown, JSON and a chart."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.paths import PACKAGE, atomic_write
from emollama.reporting.checkpoint_chart import checkpoint_chart
from emollama.reporting.json_io import Notes, mapping, numbers, read_object, text, texts, whole
from emollama.reporting.measures import digits_of, figure, higher_is_better, registered_metric

RECORD, SUMMARY, RESULT = "evaluated.json", "sweep.json", "result"
Fingerprint = dict[str, dict[str, str]]  # block, "" for all of them -> what its figures rest on -> a digest


@dataclass(frozen=True)
class CheckpointRow:
    """One model of a sweep.

    Attributes:
        label: its folder's name.
        epoch: of its checkpoint; -1 of what training began from, None of a file that was named.
        files: its checkpoints, several where their mean is meant; none of random values.
        sha256: of the files.
        basis: what figures rest on beside them.
        run: name of the training run's folder.
    """

    label: str
    epoch: int | None
    files: tuple[str, ...]
    sha256: tuple[str, ...] = ()
    basis: Fingerprint = field(default_factory=dict)
    run: str = ""

    @property
    def blocks(self) -> list[str]:
        """Those that it answers."""
        return [label for label in self.basis if label]


@dataclass(frozen=True)
class CheckpointTable:
    """The rows of a sweep that were evaluated alike, in order.

    Attributes:
        folder: of the sweep.
        basis: that the rows share.
        rows: the rows.
        metrics: label -> column -> value.
        columns: column (``block.metric``, with the task between them where the block has several) -> ``block/task/metric``.
        notes: what is left out.
    """

    folder: Path
    basis: Fingerprint
    rows: list[CheckpointRow]
    metrics: dict[str, dict[str, float | None]]
    columns: dict[str, str]
    notes: Notes = field(default_factory=list)


def read_records(folder: Path) -> list[CheckpointRow]:
    """The rows that were evaluated, in order: the start, epochs, then files that were named."""
    found = [CheckpointRow(**_plain(content)) for path in folder.glob(f"*/{RECORD}") if (content := read_object(path, []))]
    return sorted(found, key=lambda row: (row.epoch is None, row.epoch or 0, row.label))


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    several = {key: tuple(texts(content.get(key))) for key in ("files", "sha256")}
    single = {key: text(content.get(key)) for key in ("label", "run")}
    return several | single | {"epoch": whole(content.get("epoch")), "basis": _basis(content)}


def _basis(content: Mapping[str, Any]) -> Fingerprint:
    blocks = mapping(content.get("basis")).items()
    return {label: {what: text(value) for what, value in mapping(parts).items()} for label, parts in blocks}


def missing(folder: Path, row: CheckpointRow) -> dict[str, str]:
    """Block -> the file of metrics that a row lacks."""
    return {block: str(path) for block in row.blocks if not (path := _metrics_file(folder, row, block)).is_file()}


def _metrics_file(folder: Path, row: CheckpointRow, block: str) -> Path:
    return folder / row.label / RESULT / f"metrics_{block}.json"


def read_checkpoint_table(folder: Path, basis: Fingerprint | None = None) -> CheckpointTable:
    """Read a sweep's files.

    Args:
        folder: of the sweep.
        basis: that rows are to have; None: that of the last sweep into this folder.

    Raises:
        UserError: nothing was evaluated there, or metrics are missing.
    """
    notes: Notes = []
    basis = basis or _basis(read_object(folder / SUMMARY, notes))
    records = read_records(folder)
    rows = [row for row in records if row.basis == basis]
    if not rows:
        raise UserError(f"'{folder}' holds no sweep. Run the command without --table-only, or name its folder by --output.")
    if left := [row.label for row in records if row not in rows]:
        notes.append(f"evaluated with another configuration or other data, and left out: {abbreviated(left)}")
    if lacking := list(chain(*(missing(folder, row).values() for row in rows))):
        raise UserError(f"metrics are missing, {listing(lacking)}. Run the command without --table-only.")
    found = {row.label: dict(_metrics(folder, row, notes)) for row in rows}
    keys = list(dict.fromkeys(chain(*found.values())))
    if not keys:
        page = (PACKAGE / "docs/evaluation.md").resolve()
        raise UserError(f"'{folder}': no block has a metric. What metrics need: {page}")
    columns = {_column(key, keys): key for key in keys}
    metrics = {label: {column: values.get(key) for column, key in columns.items()} for label, values in found.items()}
    return CheckpointTable(folder, basis, rows, metrics, columns, notes)


def _metrics(folder: Path, row: CheckpointRow, notes: Notes) -> Iterator[tuple[str, float | None]]:
    """(``block/task/metric``, value)."""
    for block in row.blocks:
        tasks = mapping(read_object(_metrics_file(folder, row, block), notes).get("tasks"))
        for task, scores in tasks.items():
            for name, value in numbers(mapping(scores).get("metrics")).items():
                yield f"{block}/{task}/{name}", value


def _column(key: str, keys: Sequence[str]) -> str:
    block, task, name = key.split("/")
    several = len({other.split("/")[1] for other in keys if other.split("/")[0] == block}) > 1
    return f"{block}.{task}.{name}" if several else f"{block}.{name}"


def best_of(sweep: CheckpointTable) -> dict[str, list[str]]:
    """Column -> the rows that are best in it; none where nobody knows which way is better, or all show the same figure."""
    best: dict[str, list[str]] = {}
    for column, key in sweep.columns.items():
        better = higher_is_better(key.rpartition("/")[2])
        values = {label: value for label, found in sweep.metrics.items() if (value := found[column]) is not None}
        if better is not None and len({_figure(value, key) for value in values.values()}) > 1:
            top = (max if better else min)(values.values())
            best[column] = [label for label, value in values.items() if value == top]
    return best


def write_checkpoint_table(sweep: CheckpointTable) -> str:
    """Write sweep.json, sweep.csv, sweep.md and sweep.png into its folder. Returns the Markdown."""
    best = best_of(sweep)
    rows = [{**asdict(row), "metrics": sweep.metrics[row.label]} for row in sweep.rows]
    with atomic_write(sweep.folder / SUMMARY) as file:
        json.dump({"basis": sweep.basis, "columns": sweep.columns, "best": best, "rows": rows}, file, indent=1)
    with atomic_write(sweep.folder / "sweep.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["checkpoint", "epoch", "file", *sweep.columns])
        for row in sweep.rows:
            epoch = row.epoch if row.epoch is not None and row.epoch >= 0 else ""
            writer.writerow([row.label, epoch, " ".join(row.files), *sweep.metrics[row.label].values()])
    markdown = "".join(f"{line}\n" for line in _markdown(sweep, best))
    with atomic_write(sweep.folder / "sweep.md") as file:
        file.write(markdown)
    with atomic_write(sweep.folder / "sweep.png", "wb") as file:
        file.write(_chart(sweep))
    return markdown


def _chart(sweep: CheckpointTable) -> bytes:
    ticks = [str(row.epoch) if row.epoch is not None and row.epoch >= 0 else row.label for row in sweep.rows]
    series = {key: [sweep.metrics[row.label][column] for row in sweep.rows] for column, key in sweep.columns.items()}
    return checkpoint_chart(ticks, sum(row.epoch is None for row in sweep.rows), series)


def _markdown(sweep: CheckpointTable, best: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A table a block, the best of each column in bold; then what the rows are."""
    for block in dict.fromkeys(key.partition("/")[0] for key in sweep.columns.values()):
        columns = [column for column, key in sweep.columns.items() if key.partition("/")[0] == block]
        yield f"| checkpoint | {' | '.join(columns)} |"
        yield f"|---|{'---:|' * len(columns)}"
        for row in sweep.rows:
            cells = [_cell(column, row.label, sweep, best) for column in columns]
            yield f"| {row.label} | {' | '.join(cells)} |"
        yield ""
    yield "**Bold**: the best of a column."
    for row in sweep.rows:
        if not row.files:
            yield f"{row.label}: what training began from, random projections and adapters."
        elif row.epoch == -1:
            yield f"{row.label}: what training began from, {', '.join(row.files)}."
    yield from (f"Note: {note}" for note in sweep.notes)


def _cell(column: str, label: str, sweep: CheckpointTable, best: Mapping[str, Sequence[str]]) -> str:
    shown = _figure(sweep.metrics[label][column], sweep.columns[column])
    return f"**{shown}**" if label in best.get(column, ()) else shown


def _figure(value: float | None, key: str) -> str:
    """A value of ``block/task/metric``: with the same decimals always where the metric has a best value."""
    name = key.rpartition("/")[2]
    known, digits = registered_metric(name), digits_of(name)
    if value is None or known is None or known.top is None:
        return figure(value, digits)
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.0000

"""Reads the results of ``emollama eval-checkpoints``, and writes them as CSV, Markdown, JSON and a chart."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.json_io import Notes, read_object
from emollama.listing import abbreviated, listing
from emollama.paths import PACKAGE, atomic_write
from emollama.reporting.checkpoint_chart import checkpoint_chart
from emollama.reporting.measures import format_value, higher_is_better, metric_digits, registered_metric
from emollama.run_folder import RESULT, BlockScores, TaskRecord, metrics_file, parse

RECORD, SUMMARY = "evaluated.json", "sweep.json"
Fingerprint = dict[str, dict[str, str]]  # block ("" for all blocks) -> what its scores depend on -> digest


@dataclass(frozen=True)
class CheckpointRow:
    """One evaluated model.

    Attributes:
        label: name of its folder.
        epoch: epoch of its checkpoint; -1 for the start of the training, None for a file that the user named.
        files: its checkpoints: several for the mean of their weights, none for random values.
        sha256: digests of the files.
        basis: what its scores depend on, except the files.
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
        """Labels of the evaluated blocks."""
        return [label for label in self.basis if label]


@dataclass(frozen=True)
class CheckpointSummary:
    """The content of ``sweep.json``.

    Attributes:
        basis: what the scores of all rows depend on.
        columns: column -> ``block/task/metric``.
        best: column -> labels of its best rows.
        rows: the fields of each :class:`CheckpointRow`, and its ``metrics``: column -> value.
    """

    basis: Fingerprint
    columns: dict[str, str]
    best: dict[str, list[str]]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class CheckpointTable:
    """The models that were evaluated with the same settings and data, in order.

    Attributes:
        folder: folder of the results.
        basis: what the scores of all rows depend on.
        rows: the models.
        metrics: label -> column -> value.
        columns: column (``block.metric``, or ``block.task.metric`` if the block has several tasks) -> ``block/task/metric``.
        notes: messages about what is left out.
    """

    folder: Path
    basis: Fingerprint
    rows: list[CheckpointRow]
    metrics: dict[str, dict[str, float | None]]
    columns: dict[str, str]
    notes: Notes = field(default_factory=list)


def read_records(folder: Path) -> list[CheckpointRow]:
    """Read the evaluated models in order: the start of the training, epochs, then files that the user named."""
    rows = [parse(CheckpointRow, content) for path in folder.glob(f"*/{RECORD}") if (content := read_object(path, []))]
    return sorted(rows, key=lambda row: (row.epoch is None, row.epoch or 0, row.label))


def missing(folder: Path, row: CheckpointRow) -> dict[str, str]:
    """Return the metrics files, by block, that a row needs and that do not exist."""
    return {block: str(path) for block in row.blocks if not (path := _metrics_file(folder, row, block)).is_file()}


def _metrics_file(folder: Path, row: CheckpointRow, block: str) -> Path:
    return folder / row.label / RESULT / metrics_file(block)


def read_checkpoint_table(folder: Path, basis: Fingerprint | None = None) -> CheckpointTable:
    """Read the results in a folder.

    Args:
        folder: folder of the results.
        basis: only read rows with this basis; None: the basis of the last evaluation in this folder.

    Raises:
        UserError: If the folder has no results, or metrics are missing.
    """
    notes: Notes = []
    basis = basis or parse(CheckpointSummary, read_object(folder / SUMMARY, notes)).basis
    records = read_records(folder)
    rows = [row for row in records if row.basis == basis]
    if not rows:
        remedy = "Run the command without --table-only, or specify the folder with --output."
        raise UserError(f"'{folder}' contains no evaluated checkpoints. {remedy}")
    if left_out := [row.label for row in records if row not in rows]:
        notes.append(f"left out, because they were evaluated with another configuration or other data: {abbreviated(left_out)}")
    if missing_files := list(chain(*(missing(folder, row).values() for row in rows))):
        raise UserError(f"{listing(missing_files, 'missing metrics file')}. Run the command without --table-only.")
    values_by_key = {row.label: dict(_metrics(folder, row, notes)) for row in rows}
    keys = list(dict.fromkeys(chain(*values_by_key.values())))
    if not keys:
        page = (PACKAGE / "docs/evaluation.md").resolve()
        raise UserError(f"'{folder}': no block has a metric. See {page} for what each metric needs.")
    columns = {_column(key, keys): key for key in keys}
    metrics = {label: {column: values.get(key) for column, key in columns.items()} for label, values in values_by_key.items()}
    return CheckpointTable(folder, basis, rows, metrics, columns, notes)


def _metrics(folder: Path, row: CheckpointRow, notes: Notes) -> Iterator[tuple[str, float | None]]:
    """Yield (``block/task/metric``, value)."""
    for block in row.blocks:
        scores = parse(BlockScores, read_object(_metrics_file(folder, row, block), notes))
        for task, content in scores.tasks.items():
            for name, value in parse(TaskRecord, content).metrics.items():
                yield f"{block}/{task}/{name}", value


def _column(key: str, keys: Sequence[str]) -> str:
    block, task, name = key.split("/")
    several = len({other.split("/")[1] for other in keys if other.split("/")[0] == block}) > 1
    return f"{block}.{task}.{name}" if several else f"{block}.{name}"


def best_rows(table: CheckpointTable) -> dict[str, list[str]]:
    """Return the labels of the best rows of each column, unless its direction is unknown or all shown values are equal."""
    best: dict[str, list[str]] = {}
    for column, key in table.columns.items():
        better = higher_is_better(key.rpartition("/")[2])
        values = {label: value for label, row in table.metrics.items() if (value := row[column]) is not None}
        if better is not None and len({_formatted(value, key) for value in values.values()}) > 1:
            best_value = (max if better else min)(values.values())
            best[column] = [label for label, value in values.items() if value == best_value]
    return best


def write_checkpoint_table(table: CheckpointTable) -> str:
    """Write sweep.json, sweep.csv, sweep.md and sweep.png into the table's folder.

    Returns:
        The Markdown table.
    """
    best = best_rows(table)
    rows = [{**asdict(row), "metrics": table.metrics[row.label]} for row in table.rows]
    with atomic_write(table.folder / SUMMARY) as file:
        json.dump(asdict(CheckpointSummary(table.basis, table.columns, best, rows)), file, indent=1)
    with atomic_write(table.folder / "sweep.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["checkpoint", "epoch", "file", *table.columns])
        for row in table.rows:
            epoch = row.epoch if row.epoch is not None and row.epoch >= 0 else ""
            writer.writerow([row.label, epoch, " ".join(row.files), *table.metrics[row.label].values()])
    markdown = "".join(f"{line}\n" for line in _markdown(table, best))
    with atomic_write(table.folder / "sweep.md") as file:
        file.write(markdown)
    with atomic_write(table.folder / "sweep.png", "wb") as file:
        file.write(_chart(table))
    return markdown


def _chart(table: CheckpointTable) -> bytes:
    ticks = [str(row.epoch) if row.epoch is not None and row.epoch >= 0 else row.label for row in table.rows]
    series = {key: [table.metrics[row.label][column] for row in table.rows] for column, key in table.columns.items()}
    return checkpoint_chart(ticks, sum(row.epoch is None for row in table.rows), series)


def _markdown(table: CheckpointTable, best: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the lines of one table per block, with the best values in bold, then explanations of the rows."""
    for block in dict.fromkeys(key.partition("/")[0] for key in table.columns.values()):
        columns = [column for column, key in table.columns.items() if key.partition("/")[0] == block]
        yield f"| checkpoint | {' | '.join(columns)} |"
        yield f"|---|{'---:|' * len(columns)}"
        for row in table.rows:
            cells = [_cell(column, row.label, table, best) for column in columns]
            yield f"| {row.label} | {' | '.join(cells)} |"
        yield ""
    yield "**Bold**: best value of the column."
    for row in table.rows:
        if not row.files:
            yield f"{row.label}: start of the training, with random projections and adapters."
        elif row.epoch == -1:
            yield f"{row.label}: start of the training, {', '.join(row.files)}."
    yield from (f"Note: {note}" for note in table.notes)


def _cell(column: str, label: str, table: CheckpointTable, best: Mapping[str, Sequence[str]]) -> str:
    shown = _formatted(table.metrics[label][column], table.columns[column])
    return f"**{shown}**" if label in best.get(column, ()) else shown


def _formatted(value: float | None, key: str) -> str:
    """Format a value of ``block/task/metric``; metrics with a best value always have the same number of decimals."""
    name = key.rpartition("/")[2]
    metric, digits = registered_metric(name), metric_digits(name)
    if value is None or metric is None or metric.max_value is None:
        return format_value(value, digits)
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:.{digits}f}"

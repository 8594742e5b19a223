"""Reads the results of ``emollama eval-checkpoints``, and writes them as CSV, Markdown, JSON and a chart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from emollama.data.csv_files import write_csv
from emollama.errors import UserError
from emollama.json_io import Notes, mapping, read_object
from emollama.listing import abbreviated, listing
from emollama.paths import PACKAGE, atomic_write
from emollama.reporting.metric_table import MetricValue, best_subjects, metric_value, tables
from emollama.reporting.panels import PANELS, Line, Panel, metric_panel, metric_panels
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


def read_records(folder: Path, notes: Notes) -> list[CheckpointRow]:
    """Read the evaluated models in order: the start of the training, epochs, then files that the user named.

    Args:
        folder: folder of the results.
        notes: receives messages about records that cannot be read.
    """
    rows = [parse(CheckpointRow, content) for path in folder.glob(f"*/{RECORD}") if (content := read_object(path, notes))]
    return sorted(rows, key=lambda row: (row.epoch is None, row.epoch or 0, row.label))


def missing(folder: Path, row: CheckpointRow) -> dict[str, str]:
    """Return the metrics files, by block, that a row needs and that do not exist or are damaged."""
    paths = {block: _metrics_file(folder, row, block) for block in row.blocks}
    return {block: str(path) for block, path in paths.items() if not mapping(read_object(path, []).get("tasks"))}


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
    records = read_records(folder, notes)
    rows = [row for row in records if row.basis == basis]
    if not rows:
        remedy = "Run the command without --table-only, or specify the folder with --output."
        problems = "".join(f" {note}." for note in notes)
        raise UserError(f"'{folder}' contains no evaluated checkpoints.{problems} {remedy}")
    if left_out := [row.label for row in records if row not in rows]:
        notes.append(f"left out, because they were evaluated with another configuration or other data: {abbreviated(left_out)}")
    if missing_files := list(chain(*(missing(folder, row).values() for row in rows))):
        raise UserError(f"{listing(missing_files, 'missing or damaged metrics file')}. Run the command without --table-only.")
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


def values_of(table: CheckpointTable) -> list[MetricValue]:
    """Return all values of a table."""
    return [
        metric_value((row.label,), key, table.metrics[row.label][column])
        for row in table.rows
        for column, key in table.columns.items()
    ]


def best_rows(table: CheckpointTable) -> dict[str, list[str]]:
    """Return the labels of the best rows of each column, unless its direction is unknown or all shown values are equal."""
    best = best_subjects(values_of(table))
    columns = {column: metric_value((), key, None).column for column, key in table.columns.items()}
    return {column: [label for (label,) in best[key]] for column, key in columns.items() if key in best}


def checkpoint_panels(table: CheckpointTable) -> list[Panel]:
    """Return one panel per metric: a line over the epochs, and a horizontal line for each file that the user named."""
    panels = []
    for column, key in table.columns.items():
        values = [(row, value) for row in table.rows if (value := table.metrics[row.label][column]) is not None]
        line = Line("", [(row.epoch, value) for row, value in values if row.epoch is not None])
        levels = [Line(row.label, level=value) for row, value in values if row.epoch is None]
        panels.append(metric_panel(key, [line, *levels]))
    return panels


def write_checkpoint_table(table: CheckpointTable) -> str:
    """Write sweep.json, sweep.csv, sweep.md and sweep.png into the table's folder.

    Returns:
        The Markdown table.
    """
    best = best_rows(table)
    rows = [{**asdict(row), "metrics": table.metrics[row.label]} for row in table.rows]
    with atomic_write(table.folder / SUMMARY) as file:
        json.dump(asdict(CheckpointSummary(table.basis, table.columns, best, rows)), file, indent=1)
    cells: list[list[Any]] = [["checkpoint", "epoch", "file", *table.columns]]
    for row in table.rows:
        epoch = row.epoch if row.epoch is not None and row.epoch >= 0 else ""
        cells.append([row.label, epoch, " ".join(row.files), *table.metrics[row.label].values()])
    write_csv(table.folder / "sweep.csv", cells)
    panels = checkpoint_panels(table)
    notes = [*table.notes, *([f"sweep.png shows {PANELS} of {len(panels)} metrics"] if len(panels) > PANELS else [])]
    markdown = "".join(f"{line}\n" for line in _markdown(table, notes))
    with atomic_write(table.folder / "sweep.md") as file:
        file.write(markdown)
    if chart := metric_panels(panels):
        with atomic_write(table.folder / "sweep.png", "wb") as file:
            file.write(chart)
    return markdown


def _markdown(table: CheckpointTable, notes: Notes) -> Iterator[str]:
    """Yield the lines of the tables, then explanations of the rows."""
    yield from tables(("checkpoint",), values_of(table))
    for row in table.rows:
        if not row.files:
            yield f"{row.label}: start of the training, with random projections and adapters."
        elif row.epoch == -1:
            yield f"{row.label}: start of the training, {', '.join(row.files)}."
    yield from (f"Note: {note}" for note in notes)

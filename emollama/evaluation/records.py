"""Scores of several files as plain values (``scores.json``), and as one row per sample and file (``scores.csv``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emollama.component_errors import reported
from emollama.data.csv_files import write_csv
from emollama.evaluation.matching import Matched
from emollama.evaluation.prediction_files import scores_as_dict
from emollama.evaluation.scoring import TaskScores
from emollama.evaluation.statistics import Resampling, compare
from emollama.paths import atomic_write

WRITTEN = ("scores.json", "scores.csv")


def task_record(scores: Mapping[str, TaskScores], matched: Mapping[str, Matched], resampling: Resampling) -> dict[str, Any]:
    """Return each file's scores of one task, with intervals, differences from the first file, and missing predictions."""
    return {
        file: {
            **scores_as_dict(scores[file]),
            **record,
            "missing": matched[file].missing,
            "empty": matched[file].empty,
            "unknown": matched[file].unknown,
            "unreadable": matched[file].unreadable,
        }
        for file, record in comparison_record(scores, resampling).items()
    }


def comparison_record(scores: Mapping[str, TaskScores], resampling: Resampling) -> dict[str, dict[str, Any]]:
    """Return each set's metrics with intervals, and their differences from those of the first set."""
    comparison = compare(scores, resampling)
    return {
        label: {
            "clips": result.num_samples,
            "estimates": {name: estimate.as_dict() for name, estimate in comparison.estimates[label].items()},
            "differences": {name: estimate.as_dict() for name, estimate in comparison.differences.get(label, {}).items()},
        }
        for label, result in scores.items()
    }


def write_records(folder: Path, record: Mapping[str, Any], scores: Mapping[str, Mapping[str, TaskScores]]) -> list[Path]:
    """Write ``scores.json`` and ``scores.csv``.

    Args:
        folder: output folder; it is created if necessary.
        record: content of the JSON file.
        scores: task -> file -> its scores.

    Returns:
        The files that were written.
    """
    files = [folder / name for name in WRITTEN]
    with atomic_write(files[0]) as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
    files_of_tasks = [(task, path, result) for task, by_file in scores.items() for path, result in by_file.items()]
    rows = [row for task, path, result in files_of_tasks for row in _sample_rows(task, path, result)]
    columns = dict.fromkeys(column for row in rows for column in row)
    write_csv(files[1], [[*columns], *([row.get(column, "") for column in columns] for row in rows)])
    return files


def _sample_rows(task: str, path: str, scores: TaskScores) -> Iterator[dict[str, Any]]:
    """Yield one row per sample with the columns of every metric input."""
    rows: dict[str, dict[str, Any]] = {}
    for prediction in scores.predictions:
        rows[prediction.name] = {"task": task or "unnamed", "file": path, "name": prediction.name}
    for input_name, metric_input in scores.inputs.items():
        with reported(f"metric input '{input_name}', class {type(metric_input).__name__}", type(metric_input)):
            for row in metric_input.sample_rows(scores.metrics_of(input_name)):
                rows[row["name"]] |= row
    yield from rows.values()

"""Writers for files of predictions and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emollama.component_errors import ComponentFailed, reported, source_file
from emollama.data.csv_files import write_csv
from emollama.evaluation.metrics import MetricInput
from emollama.evaluation.scoring import TaskScores
from emollama.paths import atomic_write
from emollama.run_folder import BlockScores, PredictionRecord, TaskRecord, json_line, metrics_file, predictions_file

REASONING_TASKS = ("reason", "reason_v2")
# Keys of a task in metrics_*.json and scores.json that are computed from the predictions and metrics of all metric inputs.
RESERVED = ("clips", "metrics", "judge", "estimates", "differences", "missing", "empty", "unknown", "unreadable")


def write_predictions(folder: Path, block: str, predictions: Sequence[PredictionRecord]) -> list[Path]:
    """Write ``predictions_<block>.jsonl`` and, for reasoning tasks, the CSV that EMER's scorers read.

    The CSV (``names,chi_reasons``; English text in spite of the column name) is named after the block, and after the task too if
    the block has both reasoning tasks.

    Args:
        folder: output folder; it is created if necessary.
        block: label of the evaluation block.
        predictions: the predictions.

    Returns:
        The files that were written.
    """
    files = [folder / predictions_file(block)]
    with atomic_write(files[0]) as file:
        file.writelines(map(json_line, predictions))
    tasks = sorted({record.task for record in predictions} & set(REASONING_TASKS))
    for task in tasks:
        files.append(folder / (f"predictions_{block}.csv" if len(tasks) == 1 else f"predictions_{block}_{task}.csv"))
        rows = ([record.name, record.prediction] for record in predictions if record.task == task)
        # Scorers read the descriptions as they are.
        write_csv(files[-1], [("names", "chi_reasons"), *rows], escape=False)
    return files


def write_metrics(folder: Path, block: str, scores: Mapping[str, TaskScores], source: str | None) -> Path:
    """Write ``metrics_<block>.json``: the metrics of each task, with details such as the confusion matrix.

    Args:
        folder: output folder; it is created if necessary.
        block: label of the evaluation block.
        scores: task -> scores.
        source: the evaluated checkpoint; None during training.

    Returns:
        The file that was written.
    """
    path = folder / metrics_file(block)
    content = BlockScores(block, source, {task: scores_as_dict(result) for task, result in scores.items()})
    with atomic_write(path) as file:
        json.dump(vars(content), file, indent=1, ensure_ascii=False)
    return path


def scores_as_dict(scores: TaskScores) -> dict[str, Any]:
    """Return scores as plain values: the fields of :class:`TaskRecord` that are not None, and other details of metric inputs.

    Raises:
        ComponentFailed: If the details of a metric input are unusable.
    """
    content: dict[str, Any] = {}
    failures: list[dict[str, Any]] = []
    clip_scores: dict[str, dict[str, Any]] | None = None
    for name, metric_input in scores.inputs.items():
        with reported(f"metric input '{name}', class {type(metric_input).__name__}", type(metric_input)):
            details = _details(name, metric_input, scores)
            failures += details.pop("failures", [])
            if "clip_scores" in details:
                clip_scores = clip_scores or {}
                for row in details.pop("clip_scores"):
                    clip_scores.setdefault(row["name"], {}).update(row)
        for key, value in details.items():
            if content.setdefault(key, value) != value:
                raise _unusable(name, metric_input, f"the key '{key}', which another metric input sets to another value")
    record = TaskRecord(
        clips=scores.num_samples,
        metrics=scores.metrics,
        judge=scores.judge | {"failures": failures} if scores.judge else None,
        clip_scores=None if clip_scores is None else list(clip_scores.values()),
    )
    return {name: value for name, value in vars(record).items() if value is not None} | content


def _details(name: str, metric_input: MetricInput, scores: TaskScores) -> dict[str, Any]:
    """Return a copy of the details of a metric input."""
    details: Any = metric_input.details(scores.predictions, scores.metrics_of(name))
    if not isinstance(details, dict):
        raise _unusable(name, metric_input, f"{details!r:.60}. Expected {{key: value}}")
    if reserved := [key for key in RESERVED if key in details]:
        raise _unusable(name, metric_input, f"the reserved key '{reserved[0]}'. Use another name")
    try:
        json.dumps(details, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unusable(name, metric_input, f"a value that JSON cannot store: {error}") from error
    return {**details}


def _unusable(name: str, metric_input: MetricInput, problem: str) -> ComponentFailed:
    place = f"metric input '{name}', class {type(metric_input).__name__} ({source_file(type(metric_input))})"
    return ComponentFailed(f"{place}: details returned {problem}.")

"""Writers for files of predictions and metrics."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emollama.evaluation.captions.metric_inputs import CaptionNumbers
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps
from emollama.evaluation.metrics import metric
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.recognition import Labels, confusion, per_class
from emollama.evaluation.scoring import TaskScores
from emollama.paths import atomic_write

REASONING_TASKS = ("reason", "reason_v2")
PER_SAMPLE = ("rouge_l", "cider_d", "meteor", "spice")  # caption metrics that are meaningful for a single sample


def write_predictions(folder: Path, block: str, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write ``predictions_<block>.jsonl`` and, for reasoning tasks, the CSV that EMER's scorers read.

    The CSV (``names,chi_reasons``; English text in spite of the column name) is named after the block, and after the task too if
    the block has both reasoning tasks.

    Args:
        folder: output folder; it is created if necessary.
        block: label of the evaluation block.
        rows: one object per prediction, with at least name, task and prediction.

    Returns:
        The files that were written.
    """
    files = [folder / f"predictions_{block}.jsonl"]
    with atomic_write(files[0]) as file:
        file.writelines(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows)
    tasks = sorted({row["task"] for row in rows} & set(REASONING_TASKS))
    for task in tasks:
        files.append(folder / (f"predictions_{block}.csv" if len(tasks) == 1 else f"predictions_{block}_{task}.csv"))
        with atomic_write(files[-1]) as file:
            writer = csv.writer(file)
            writer.writerow(["names", "chi_reasons"])
            writer.writerows([row["name"], row["prediction"]] for row in rows if row["task"] == task)
    return files


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with null instead of a loss that is not finite, because JSON has no such numbers."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


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
    path = folder / f"metrics_{block}.json"
    content = {"block": block, "checkpoint": source, "tasks": {task: scores_as_dict(result) for task, result in scores.items()}}
    with atomic_write(path) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
    return path


def scores_as_dict(scores: TaskScores) -> dict[str, Any]:
    """Return scores as plain values: number of samples, metrics, and the details of each metric input."""
    content: dict[str, Any] = {"clips": scores.num_samples, "metrics": scores.metrics}
    labels = scores.inputs.get(Labels)
    if isinstance(labels, Labels):
        content["recognition"] = {
            "labels": list(labels.labels),
            "confusion": confusion(labels),
            "per_class": per_class(labels),
            "invalid": _invalid(labels, scores.predictions),
        }
    judged = [overlaps for overlaps in scores.inputs.values() if isinstance(overlaps, ClueOverlaps | LabelOverlaps)]
    if scores.judge:
        content["judge"] = scores.judge | {"failures": [failure for overlaps in judged for failure in overlaps.failures()]}
    if judged:
        content["clip_scores"] = list(_judged_scores(judged))
    if captioned := [numbers for numbers in scores.inputs.values() if isinstance(numbers, CaptionNumbers)]:
        content["captions"] = _captions(captioned[0], scores.predictions)
        content["clip_scores"] = list(_caption_scores(captioned, scores.metrics))
    return content


def _captions(numbers: CaptionNumbers, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the tokenizer, and the samples without a reference."""
    scored = {*numbers.names}
    return {
        "tokenizer": numbers.tokenizer,
        "without_reference": [prediction.name for prediction in predictions if prediction.name not in scored],
    }


def _caption_scores(captioned: Sequence[CaptionNumbers], metrics: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per sample with its own metrics."""
    by_type = {type(numbers): numbers for numbers in captioned}
    inputs = {name: by_type.get(metric(name).input_type) for name in PER_SAMPLE if name in metrics}
    for index, name in enumerate(captioned[0].names):
        yield {"name": name} | {key: metric(key).compute(numbers.take([index])) for key, numbers in inputs.items() if numbers}


def _invalid(labels: Labels, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return the predictions from which no label was extracted."""
    texts = {prediction.name: prediction.text for prediction in predictions}
    rows = zip(labels.names, labels.references, labels.predicted, strict=True)
    return [{"name": name, "reference": label, "prediction": texts[name]} for name, label, predicted in rows if predicted is None]


def _judged_scores(judged: Sequence[ClueOverlaps | LabelOverlaps]) -> Iterator[dict[str, Any]]:
    """Yield one row per sample with its scores and its emotion words."""
    rows: dict[str, dict[str, Any]] = {}
    for overlaps in judged:
        for index, name in enumerate(overlaps.names):
            row = rows.setdefault(name, {"name": name})
            if isinstance(overlaps, ClueOverlaps):
                row["clue_overlap"] = overlaps.verdicts[index].score
            else:
                row["label_overlap"] = overlaps.verdicts[index].score
                row["true_words"], row["predicted_words"] = overlaps.reference_words[index], overlaps.predicted_words[index]
    yield from rows.values()

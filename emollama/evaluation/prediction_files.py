"""Files of predictions and of metrics."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emollama.evaluation.answers import Answer
from emollama.evaluation.captions.metric_inputs import CaptionNumbers
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps
from emollama.evaluation.metrics import metric
from emollama.evaluation.recognition import Labels, confusion, per_class
from emollama.evaluation.scoring import TaskScores
from emollama.paths import atomic_write

REASONING_TASKS = ("reason", "reason_v2")
OF_CLIPS = ("rouge_l", "cider_d", "meteor", "spice")  # metrics of captions that say something of a single clip


def write_predictions(folder: Path, block: str, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write ``predictions_<block>.jsonl``, and for tasks that reason the CSV that EMER's scorers read.

    The CSV (``names,chi_reasons``; English text in spite of the name) is called after the block, and after the task too where
    the block has both.

    Args:
        folder: created if need be.
        block: the evaluation block's label.
        rows: an object a prediction, with at least name, task and prediction.

    Returns:
        The files written.
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
    """The row with null for a loss that is not finite, which JSON cannot say."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def write_metrics(folder: Path, block: str, scores: Mapping[str, TaskScores], source: str | None) -> Path:
    """Write ``metrics_<block>.json``: each task's metrics, and what they rest on.

    Args:
        folder: created if need be.
        block: the evaluation block's label.
        scores: task -> scores.
        source: the checkpoint that answered; None while training.
    """
    path = folder / f"metrics_{block}.json"
    content = {"block": block, "checkpoint": source, "tasks": {task: described(found) for task, found in scores.items()}}
    with atomic_write(path) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
    return path


def described(scores: TaskScores) -> dict[str, Any]:
    """Scores as plain values: clips, metrics, and by kind of evidence what a reader would ask for next."""
    content: dict[str, Any] = {"clips": scores.clips, "metrics": scores.metrics}
    labels = scores.evidence.get(Labels)
    if isinstance(labels, Labels):
        content["recognition"] = {
            "labels": list(labels.labels),
            "confusion": confusion(labels),
            "per_class": per_class(labels),
            "invalid": _invalid(labels, scores.answers),
        }
    judged = [found for kind in (ClueOverlaps, LabelOverlaps) if isinstance(found := scores.evidence.get(kind), kind)]
    if scores.judge:
        content["judge"] = scores.judge | {"failures": [failure for found in judged for failure in found.failures()]}
    if judged:
        content["clip_scores"] = list(_clip_scores(judged))
    if captioned := [found for found in scores.evidence.values() if isinstance(found, CaptionNumbers)]:
        content["captions"] = _captions(captioned[0], scores.answers)
        content["clip_scores"] = list(_caption_scores(captioned, scores.metrics))
    return content


def _captions(found: CaptionNumbers, answers: Sequence[Answer]) -> dict[str, Any]:
    """By which words captions were compared, and which clips had none to compare with."""
    scored = {*found.names}
    return {"tokenizer": found.tokenizer, "without_reference": [each.name for each in answers if each.name not in scored]}


def _caption_scores(captioned: Sequence[CaptionNumbers], metrics: Collection[str]) -> Iterator[dict[str, Any]]:
    """A row a clip: its figures alone."""
    chosen = {name: found for name in OF_CLIPS if name in metrics for found in captioned if type(found) is metric(name).evidence}
    for place, name in enumerate(captioned[0].names):
        yield {"name": name} | {key: metric(key).value(found.take([place])) for key, found in chosen.items()}


def _invalid(labels: Labels, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The answers that no label was read out of."""
    texts = {answer.name: answer.prediction for answer in answers}
    rows = zip(labels.names, labels.truth, labels.read, strict=True)
    return [{"name": name, "reference": truth, "prediction": texts[name]} for name, truth, read in rows if read is None]


def _clip_scores(judged: Sequence[ClueOverlaps | LabelOverlaps]) -> Iterator[dict[str, Any]]:
    """A row a clip: its scores, and the emotion words they rest on."""
    rows: dict[str, dict[str, Any]] = {}
    for found in judged:
        for place, name in enumerate(found.names):
            row = rows.setdefault(name, {"name": name})
            if isinstance(found, ClueOverlaps):
                row["clue_overlap"] = found.verdicts[place].score
            else:
                row["label_overlap"] = found.verdicts[place].score
                row["true_words"], row["predicted_words"] = found.true_words[place], found.predicted_words[place]
    yield from rows.values()

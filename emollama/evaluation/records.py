"""Scores of several files as plain values (``scores.json``), and a row a clip of each (``scores.csv``)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emollama.evaluation.matching import Matched
from emollama.evaluation.metrics import metric
from emollama.evaluation.prediction_files import described
from emollama.evaluation.recognition import Labels
from emollama.evaluation.scoring import TaskScores
from emollama.evaluation.statistics import Resampling, compare
from emollama.paths import atomic_write

WRITTEN = ("scores.json", "scores.csv")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how cells begin that a spreadsheet would run


def task_record(scores: Mapping[str, TaskScores], matched: Mapping[str, Matched], resampling: Resampling) -> dict[str, Any]:
    """file -> its scores of one task, with intervals and differences from the first file, and what was odd about its answers."""
    return {
        file: {
            **described(scores[file]),
            **record,
            "missing": matched[file].missing,
            "empty": matched[file].empty,
            "unknown": matched[file].unknown,
            "unreadable": matched[file].unreadable,
        }
        for file, record in comparison_record(scores, resampling).items()
    }


def comparison_record(scores: Mapping[str, TaskScores], resampling: Resampling) -> dict[str, dict[str, Any]]:
    """set of answers -> its figures with intervals, and their differences from the first set."""
    comparison = compare(scores, resampling)
    return {
        label: {
            "clips": found.clips,
            "estimates": {name: asdict(one) for name, one in comparison.estimates[label].items()},
            "differences": {name: asdict(one) for name, one in comparison.differences.get(label, {}).items()},
        }
        for label, found in scores.items()
    }


def write_records(folder: Path, record: Mapping[str, Any], scores: Mapping[str, Mapping[str, TaskScores]]) -> list[Path]:
    """Write ``scores.json`` and ``scores.csv``, each whole.

    Args:
        folder: created if need be.
        record: goes into the JSON file.
        scores: task -> file -> its scores.

    Returns:
        The files written.
    """
    files = [folder / name for name in WRITTEN]
    with atomic_write(files[0]) as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
    rows = [row for task, by_file in scores.items() for path, found in by_file.items() for row in clip_rows(task, path, found)]
    columns = dict.fromkeys(column for row in rows for column in row)
    with atomic_write(files[1]) as file:
        writer = csv.DictWriter(file, [*columns])
        writer.writeheader()
        writer.writerows({column: harmless(cell) for column, cell in row.items()} for row in rows)
    return files


def clip_rows(task: str, path: str, scores: TaskScores) -> Iterator[dict[str, Any]]:
    """A row a clip: its label as it was read, and every other metric of this clip alone."""
    rows: dict[str, dict[str, Any]] = {}
    for answer in scores.answers:
        rows[answer.name] = {"task": task or "unnamed", "file": path, "name": answer.name}
    for kind, evidence in scores.evidence.items():
        if isinstance(evidence, Labels):
            for name, truth, read in zip(evidence.names, evidence.truth, evidence.read, strict=True):
                rows[name] |= {"truth": truth, "label": read}
            continue
        for place, name in enumerate(evidence.names):
            alone = evidence.take([place])
            rows[name] |= {key: metric(key).value(alone) for key in scores.metrics if metric(key).evidence is kind}
    yield from rows.values()


def harmless(cell: Any) -> Any:
    """The cell; a text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell

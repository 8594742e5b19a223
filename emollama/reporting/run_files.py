"""The files of a run, as far as they are there and hold what they should.

A run's folder holds ``log.jsonl`` (a line a logged step), ``eval.jsonl`` (a line a validation), ``config.yaml``, and under
``result/`` what the evaluation script wrote, under ``result/epoch_<e>/`` what a validation did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.reporting.configuration import CONFIG, RESULT, blocks_of, evaluated_with
from emollama.reporting.json_io import (
    Notes,
    mapping,
    number,
    numbers,
    objects,
    read_lines,
    read_object,
    read_text,
    text,
    texts,
    whole,
)

LOG, EVALUATIONS = "log.jsonl", "eval.jsonl"
LOG_LINES = 60_000  # that are read of a longer log


@dataclass(frozen=True)
class ValidationRecord:
    """A validation while training: ``metrics`` by ``<block>/<task>/<metric>``; ``best`` where its checkpoint became the best."""

    epoch: int
    metrics: dict[str, float | None]
    best: bool = False


@dataclass(frozen=True)
class Recognition:
    """How labels were recognised: rows of ``confusion`` are the truth, its last column answers without a label.

    ``confusion`` is empty where the file's matrix does not fit its labels.
    """

    labels: list[str]
    confusion: list[list[int]]
    per_class: list[dict[str, Any]]
    invalid: list[dict[str, Any]]


@dataclass(frozen=True)
class TaskResult:
    """A task of a block: its figures, and its rows of predictions.

    Attributes:
        file: of the predictions.
        block, task: whose they are.
        checkpoint: the evaluated one; "" where the file does not say.
        clips: how many answers there were; None where the file does not say.
        metrics: name -> value.
        recognition: of the task that recognises labels.
        judge: its name, its usage, its failures, and why it could not be reached; empty where nobody judged.
        clip_scores: name -> its scores and words; empty where nobody judged, and of labels.
        tokenizer: that split captions into words; "" of other answers.
        predictions: name, prediction, target, reference of each clip.
    """

    file: Path
    block: str
    task: str
    checkpoint: str = ""
    clips: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    recognition: Recognition | None = None
    judge: dict[str, Any] = field(default_factory=dict)
    clip_scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokenizer: str = ""
    predictions: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunFiles:
    """A run's folder.

    Attributes:
        folder: of the run.
        steps: the logged steps, in order; each has at least "step".
        validations: by epoch.
        results: of the evaluation script; where it has not run, of the best validation, else of the last one. Blocks stand in
            the order of the configuration, those that it does not name at the end.
        results_epoch: the epoch of that validation; None where the script has run, or there are no results.
        configs: file -> its text, nothing in it resolved.
        notes: what could not be read.
        trained: whether it has a log of training.
    """

    folder: Path
    steps: list[dict[str, Any]]
    validations: list[ValidationRecord]
    results: list[TaskResult]
    results_epoch: int | None
    configs: dict[str, str]
    notes: Notes
    trained: bool


def read_run(folder: Path, *, answers: bool = True) -> RunFiles:
    """Read a run's folder.

    Args:
        folder: of the run.
        answers: also read the log and the predictions, which can be long.

    Raises:
        UserError: there is no such folder, or none of the files in it.
    """
    notes: Notes = []
    require_run(folder)
    configs = {name: found for name in (CONFIG, f"{RESULT}/{CONFIG}") if (found := read_text(folder / name, notes))}
    validations = _validations(folder, notes, configs)
    place, epoch = _place(folder, validations)
    return RunFiles(
        folder=folder,
        steps=_steps(read_lines(folder / LOG, notes, LOG_LINES)) if answers else [],
        validations=validations,
        results=list(_results(place, notes, _order(configs, epoch), answers)),
        results_epoch=epoch,
        configs=configs,
        notes=list(dict.fromkeys(notes)),
        trained=(folder / LOG).is_file(),
    )


def require_run(folder: Path) -> None:
    """Refuse what is no run's folder.

    Raises:
        UserError: there is no such folder, or none of a run's files in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'. Name the folder of a run, output_dir/<job_id>.")
    parts = (LOG, EVALUATIONS, CONFIG, f"{RESULT}/**/metrics_*.json", f"{RESULT}/**/predictions_*.jsonl")
    if not any(True for part in parts for _ in folder.glob(part)):
        raise UserError(f"{folder}: no run's folder: it holds none of {', '.join(parts)}. Name output_dir/<job_id> of a run.")


def by_key(results: Sequence[TaskResult]) -> dict[str, float | None]:
    """``<block>/<task>/<metric>`` -> value."""
    return {f"{found.block}/{found.task}/{name}": value for found in results for name, value in found.metrics.items()}


def best_validation(validations: Sequence[ValidationRecord]) -> ValidationRecord | None:
    """The last one whose checkpoint became the best."""
    return next((found for found in reversed(validations) if found.best), None)


def _steps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with a step, in order; of a repeated step the last one."""
    last = {step: row for row in rows if (step := whole(row.get("step"))) is not None}
    return [last[step] | {"step": step} for step in sorted(last)]


def _validations(folder: Path, notes: Notes, configs: Mapping[str, str]) -> list[ValidationRecord]:
    """Those of eval.jsonl; where there are none, those that left a folder of results."""
    rows = {epoch: row for row in read_lines(folder / EVALUATIONS, notes) if (epoch := whole(row.get("epoch"))) is not None}
    found = {epoch: ValidationRecord(epoch, numbers(row.get("metrics")), row.get("best") is True) for epoch, row in rows.items()}
    if not found:
        for epoch, place in _epoch_folders(folder):
            found[epoch] = ValidationRecord(epoch, by_key(list(_results(place, notes, _order(configs, epoch)))))
    return [found[epoch] for epoch in sorted(found)]


def _epoch_folders(folder: Path) -> list[tuple[int, Path]]:
    places = [(re.fullmatch(r"epoch_([0-9]{1,9})", path.name), path) for path in (folder / RESULT).glob("epoch_*")]
    return sorted((int(match[1]), path) for match, path in places if match and path.is_dir())


def _place(folder: Path, validations: Sequence[ValidationRecord]) -> tuple[Path, int | None]:
    """The folder of the results to show, and the epoch that it is of."""
    places = dict(_epoch_folders(folder))
    best = best_validation(validations)
    if any((folder / RESULT).glob("metrics_*.json")) or any((folder / RESULT).glob("predictions_*.jsonl")) or not places:
        return folder / RESULT, None
    epoch = best.epoch if best and best.epoch in places else max(places)
    return places[epoch], epoch


def _order(configs: Mapping[str, str], epoch: int | None) -> list[str]:
    """The blocks' labels as the configuration of the results has them."""
    return [text(label) for label in blocks_of(evaluated_with(configs, epoch))]


def _results(place: Path, notes: Notes, order: Sequence[str], answers: bool = False) -> Iterator[TaskResult]:
    """Every task of every block with figures or predictions in a folder of results; blocks in the order, others at the end."""
    scored = {path.stem.removeprefix("metrics_"): path for path in sorted(place.glob("metrics_*.json"))}
    answered = {path.stem.removeprefix("predictions_"): path for path in sorted(place.glob("predictions_*.jsonl"))}
    blocks = sorted({*scored, *answered})
    for block in sorted(blocks, key=[*order, *blocks].index):
        content = read_object(scored[block], notes) if block in scored else {}
        rows = read_lines(answered[block], notes) if answers and block in answered else []
        tasks = mapping(content.get("tasks"))
        for task in sorted({*tasks, *(text(row.get("task")) for row in rows)}):
            own = [row for row in rows if text(row.get("task")) == task]
            file = place / f"predictions_{block}.jsonl"
            yield _result(
                TaskResult(file, block, task, _named(content.get("checkpoint")), predictions=own), mapping(tasks.get(task))
            )


def _named(checkpoint: Any) -> str:
    """One checkpoint, or the members of an ensemble."""
    return ", ".join(texts(checkpoint)) if isinstance(checkpoint, list) else text(checkpoint)


def _result(bare: TaskResult, scores: Mapping[str, Any]) -> TaskResult:
    recognition = mapping(scores.get("recognition"))
    return TaskResult(
        file=bare.file,
        block=bare.block,
        task=bare.task,
        checkpoint=bare.checkpoint,
        clips=whole(scores.get("clips")),
        metrics=numbers(scores.get("metrics")),
        recognition=_recognition(recognition) if recognition else None,
        judge=mapping(scores.get("judge")),
        clip_scores={text(row.get("name")): row for row in objects(scores.get("clip_scores"))},
        tokenizer=text(mapping(scores.get("captions")).get("tokenizer")),
        predictions=bare.predictions,
    )


def _recognition(found: Mapping[str, Any]) -> Recognition:
    labels = texts(found.get("labels"))
    given = found.get("confusion")
    rows = [[whole(cell) for cell in row] for row in given if isinstance(row, list)] if isinstance(given, list) else []
    counts = [[cell for cell in row if cell is not None and cell >= 0] for row in rows]
    fits = len(counts) == len(labels) > 0 and all(len(row) == len(labels) + 1 for row in counts)
    return Recognition(labels, counts if fits else [], objects(found.get("per_class")), objects(found.get("invalid")))


def score_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a clip: clue_overlap and label_overlap, without those that failed; of a caption cider_d."""
    found = {name: number(row.get(name)) for name in ("clue_overlap", "label_overlap", "cider_d")}
    return {name: value for name, value in found.items() if value is not None}

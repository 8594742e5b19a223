"""Readers for the files of a run. Missing and invalid files are tolerated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.json_io import (
    Notes,
    number,
    read_lines,
    read_object,
    read_text,
    text,
)
from emollama.reporting.configuration import evaluated_blocks, evaluated_with
from emollama.run_folder import (
    CONFIG,
    EVALUATIONS,
    LOG,
    RESULT,
    BlockScores,
    PredictionRecord,
    RecognitionRecord,
    StepRecord,
    TaskRecord,
    ValidationRecord,
    block_of,
    epoch_folders,
    metrics_file,
    parse,
    parse_all,
    predictions_file,
)

LOG_LINES = 60_000  # about this many lines are read of a longer log


@dataclass(frozen=True)
class TaskResult:
    """The metrics and predictions of one task of a block.

    Attributes:
        file: file of the predictions.
        block: label of the block.
        task: name of the task.
        checkpoint: the evaluated checkpoint; "" if the file does not state it.
        num_samples: number of predictions; None if the file does not state it.
        metrics: name -> value.
        recognition: results of label recognition, without an invalid confusion matrix; None for other tasks.
        judge: name, usage and failures of the judge, and why it could not be reached; empty without a judge.
        clip_scores: sample name -> its scores and emotion words; empty without scores of single samples.
        tokenizer: tokenizer of captions; "" for other tasks.
        predictions: the predictions.
    """

    file: Path
    block: str
    task: str
    checkpoint: str = ""
    num_samples: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    recognition: RecognitionRecord | None = None
    judge: dict[str, Any] = field(default_factory=dict)
    clip_scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokenizer: str = ""
    predictions: list[PredictionRecord] = field(default_factory=list)


@dataclass(frozen=True)
class RunFiles:
    """The content of a run's folder.

    Attributes:
        folder: the folder.
        steps: logged steps in order.
        validations: validations in order of epochs.
        results: results of the evaluation script; without them those of the best validation, or else of the last one. Blocks have
            the order of the configuration; blocks that it does not contain come last.
        results_epoch: epoch of that validation; None for the evaluation script, or without results.
        configs: file -> its text with unresolved references.
        notes: messages about files that could not be read.
        trained: whether there is a log of training.
    """

    folder: Path
    steps: list[StepRecord]
    validations: list[ValidationRecord]
    results: list[TaskResult]
    results_epoch: int | None
    configs: dict[str, str]
    notes: Notes
    trained: bool


def read_run(folder: Path, *, answers: bool = True) -> RunFiles:
    """Read a run's folder.

    Args:
        folder: the folder.
        answers: also read the log and the predictions, which can be long.

    Raises:
        UserError: If the folder does not exist or contains no file of a run.
    """
    notes: Notes = []
    require_run(folder)
    configs = {name: content for name in (CONFIG, f"{RESULT}/{CONFIG}") if (content := read_text(folder / name, notes))}
    validations = _validations(folder, notes, configs)
    results_folder, epoch = _results_folder(folder, validations)
    return RunFiles(
        folder=folder,
        steps=_steps(read_lines(folder / LOG, notes, LOG_LINES)) if answers else [],
        validations=validations,
        results=list(read_results(results_folder, notes, _block_order(configs, epoch), answers)),
        results_epoch=epoch,
        configs=configs,
        notes=list(dict.fromkeys(notes)),
        trained=(folder / LOG).is_file(),
    )


def require_run(folder: Path) -> None:
    """Check that a folder is a run's folder.

    Raises:
        UserError: If the folder does not exist or contains no file of a run.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder. Specify the folder of a run, output_dir/<job_id>.")
    parts = (LOG, EVALUATIONS, CONFIG, *(f"{RESULT}/**/{file('*')}" for file in (metrics_file, predictions_file)))
    if not any(True for part in parts for _ in folder.glob(part)):
        raise UserError(f"{folder}: not a run's folder; expected one of {', '.join(parts)} in it. Name output_dir/<job_id>.")


def metrics_by_key(results: Sequence[TaskResult]) -> dict[str, float | None]:
    """Return the metrics with keys ``<block>/<task>/<metric>``."""
    return {f"{result.block}/{result.task}/{name}": value for result in results for name, value in result.metrics.items()}


def best_validation(validations: Sequence[ValidationRecord]) -> ValidationRecord | None:
    """Return the last validation whose checkpoint was the best so far."""
    return next((validation for validation in reversed(validations) if validation.best), None)


def _steps(rows: Sequence[dict[str, Any]]) -> list[StepRecord]:
    """Return the rows with a step number in order; if a step occurs several times, its last row."""
    last = {record.step: record for record in parse_all(StepRecord, rows)}
    return [last[step] for step in sorted(last)]


def _validations(folder: Path, notes: Notes, configs: Mapping[str, str]) -> list[ValidationRecord]:
    """Read the validations in eval.jsonl, or, if there are none, those in the result folders of epochs."""
    records = {record.epoch: record for record in parse_all(ValidationRecord, read_lines(folder / EVALUATIONS, notes))}
    if not records:
        for epoch, path in epoch_folders(folder).items():
            metrics = metrics_by_key(list(read_results(path, notes, _block_order(configs, epoch))))
            records[epoch] = ValidationRecord(None, epoch, metrics)
    return [records[epoch] for epoch in sorted(records)]


def _results_folder(folder: Path, validations: Sequence[ValidationRecord]) -> tuple[Path, int | None]:
    """Return the folder with the results to show, and their epoch."""
    folders = epoch_folders(folder)
    best = best_validation(validations)
    if not folders or any(True for file in (metrics_file, predictions_file) for _ in (folder / RESULT).glob(file("*"))):
        return folder / RESULT, None
    epoch = best.epoch if best and best.epoch in folders else max(folders)
    return folders[epoch], epoch


def _block_order(configs: Mapping[str, str], epoch: int | None) -> list[str]:
    """Return the labels of the blocks in the order of the configuration with which the results were computed."""
    return [text(label) for label in evaluated_blocks(evaluated_with(configs, epoch))]


def read_results(folder: Path, notes: Notes, order: Sequence[str], answers: bool = False) -> Iterator[TaskResult]:
    """Yield the results of each task of each block in a folder.

    Args:
        folder: a folder with files of predictions and metrics.
        notes: receives messages about files that cannot be read.
        order: the blocks that come first.
        answers: also read the predictions.
    """
    scored, answered = (
        {block_of(path): path for path in sorted(folder.glob(file("*")))} for file in (metrics_file, predictions_file)
    )
    blocks = sorted({*scored, *answered})
    for block in sorted(blocks, key=[*order, *blocks].index):
        scores = parse(BlockScores, read_object(scored[block], notes) if block in scored else {})
        rows = read_lines(answered[block], notes) if answers and block in answered else []
        predictions = parse_all(PredictionRecord, rows)
        checkpoint = ", ".join(scores.checkpoint) if isinstance(scores.checkpoint, list) else scores.checkpoint or ""
        for task in sorted({*scores.tasks, *(record.task for record in predictions)}):
            own = [record for record in predictions if record.task == task]
            result = TaskResult(folder / predictions_file(block), block, task, checkpoint, predictions=own)
            yield _with_scores(result, parse(TaskRecord, scores.tasks.get(task, {})))


def _with_scores(result: TaskResult, scores: TaskRecord) -> TaskResult:
    return replace(
        result,
        num_samples=scores.clips,
        metrics=scores.metrics,
        recognition=_recognition(scores.recognition) if scores.recognition else None,
        judge=scores.judge or {},
        clip_scores={text(row.get("name")): row for row in scores.clip_scores or ()},
        tokenizer=scores.captions.tokenizer if scores.captions else "",
    )


def _recognition(record: RecognitionRecord) -> RecognitionRecord:
    """Return the record, without a confusion matrix that does not fit the labels."""
    size, counts = len(record.labels), record.confusion
    fits = len(counts) == size > 0 and all(len(row) == size + 1 and min(row) >= 0 for row in counts)
    return record if fits else replace(record, confusion=[])


def sample_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a sample that are available: clue_overlap, label_overlap, and cider_d of a caption."""
    scores = {name: number(row.get(name)) for name in ("clue_overlap", "label_overlap", "cider_d")}
    return {name: value for name, value in scores.items() if value is not None}

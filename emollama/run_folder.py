"""The files in a run's folder: their names, and a class for the objects in each of them.

Writers write the fields of these classes, and readers parse JSON as these classes with :func:`parse`, so that both sides agree on
names and types. Unknown keys in a file are ignored.

==============================================  ========================================================================
``config.yaml``                                 the configuration of the training
``log.jsonl``                                   one :class:`StepRecord` per logged step
``eval.jsonl``                                  one :class:`ValidationRecord` per evaluation during training
``result/config.yaml``                          the configuration of the last evaluation by the script
``result/predictions_<block>.jsonl``            one :class:`PredictionRecord` per sample and task
``result/metrics_<block>.json``                 one :class:`BlockScores` with :class:`TaskRecord` for each task
``result/epoch_<e>/``                           predictions and metrics of the evaluation after epoch e
``result/report.html``                          the report
``.lock``                                       the process that writes to the folder, while it does so
``.attempts.json``                              number of a restart by the launcher -> its first step
``superseded/``                                 checkpoints of later steps than that from which the run was resumed
``result/.answers_<block>_*.jsonl``             the answers of an unfinished evaluation, also in ``result/epoch_<e>/``
==============================================  ========================================================================
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from emollama.json_io import mapping, number, text, whole_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG, LOG, EVALUATIONS, RESULT = "config.yaml", "log.jsonl", "eval.jsonl", "result"
ATTEMPTS = ".attempts.json"
T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class StepRecord:
    """A line of ``log.jsonl``: a training step, with the speed since the line before. Values are over all processes.

    Attributes:
        step: number of the step, from 0.
        epoch: epoch of the step, from 0.
        loss: mean loss of the global batch; None if it was not finite.
        lr: learning rate.
        grad_norm: norm of the gradient before clipping; None if it was not finite.
        skipped_steps: steps of the run so far that were skipped because the loss or the gradient was not finite.
        tokens: tokens of the step's samples.
        tokens_cut: tokens of the step's samples that did not fit.
        samples_per_s: samples per second.
        tokens_per_s: tokens per second.
        step_time: seconds per step.
        data_time: seconds per step of waiting for data.
        data_wait: share of the time that was spent waiting for data, 0 to 1.
        peak_memory_gib: peak memory of rank 0: of the GPU if there is one, otherwise of the process.
    """

    step: int
    epoch: int | None = None
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    skipped_steps: int | None = None
    tokens: int | None = None
    tokens_cut: int | None = None
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    step_time: float | None = None
    data_time: float | None = None
    data_wait: float | None = None
    peak_memory_gib: float | None = None


@dataclass(frozen=True)
class ValidationRecord:
    """A line of ``eval.jsonl``: the result of an evaluation during training.

    Attributes:
        step: number of the last training step before the evaluation, from 0; None if only the result folder is left.
        epoch: the epoch that ended before the evaluation, from 0.
        metrics: ``<block>/<task>/<metric>`` -> value; None if it could not be computed.
        best: whether its checkpoint was the best so far.
        best_lost: whether no file has the weights of this best evaluation, because they did not fit on the disk.
    """

    step: int | None
    epoch: int
    metrics: dict[str, float | None]
    best: bool = False
    best_lost: bool = False


@dataclass(frozen=True)
class PredictionRecord:
    """A line of ``predictions_<block>.jsonl``: the prediction for one task about one sample.

    Attributes:
        name: name of the sample.
        task: name of the task.
        instruction: text of the user's turn, with tags at the positions of feature tokens.
        prediction: the model's answer.
        target: the reference answer in the form used for training, or None if the data has none.
        reference: the reference answer as in the data file; a list if there are several.
        loss: mean cross-entropy (natural logarithm) of the target's tokens in the training layout; None without a target.
        label_probabilities: label -> probability with ``answer_by: likelihood``, otherwise None.
    """

    name: str
    task: str
    instruction: str
    prediction: str
    target: str | None
    reference: str | list[str] | None
    loss: float | None
    label_probabilities: dict[str, float] | None = None


@dataclass(frozen=True)
class RecognitionRecord:
    """The results of label recognition.

    Attributes:
        labels: the labels.
        confusion: numbers of samples: one row per true label, one column per extracted label, a last column for answers without.
        per_class: label, precision, recall, f1 and support of each label.
        invalid: name, reference and prediction of the answers without a label.
    """

    labels: list[str]
    confusion: list[list[int]]
    per_class: list[dict[str, Any]]
    invalid: list[dict[str, Any]]


@dataclass(frozen=True)
class CaptionsRecord:
    """How captions were scored: the tokenizer, and the names of the samples without a reference."""

    tokenizer: str
    without_reference: list[str]


@dataclass(frozen=True)
class TaskRecord:
    """The scores of a task in ``metrics_<block>.json``. Metric inputs may add other keys.

    Attributes:
        clips: number of predictions.
        metrics: name -> value; None if it is undefined.
        recognition: results of label recognition; None for other tasks.
        captions: how captions were scored; None for other tasks.
        judge: name, usage and failures of the judge, and why it was ``unreachable`` if so; None without a judge.
        clip_scores: scores and emotion words of each sample, with its name; None without scores of single samples.
    """

    clips: int | None
    metrics: dict[str, float | None]
    recognition: RecognitionRecord | None = None
    captions: CaptionsRecord | None = None
    judge: dict[str, Any] | None = None
    clip_scores: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class BlockScores:
    """The content of ``metrics_<block>.json``.

    Attributes:
        block: name of the block.
        checkpoint: the evaluated checkpoint, or several; None during training.
        tasks: task -> the fields of its :class:`TaskRecord`, without those that are None.
    """

    block: str
    checkpoint: str | list[str] | None
    tasks: dict[str, dict[str, Any]]


def predictions_file(block: str) -> str:
    """Return the name of the file with the predictions of a block; ``*`` as the block gives a glob pattern."""
    return f"predictions_{block}.jsonl"


def metrics_file(block: str) -> str:
    """Return the name of the file with the metrics of a block; ``*`` as the block gives a glob pattern."""
    return f"metrics_{block}.json"


def block_of(file: Path) -> str:
    """Return the block of a file of predictions or metrics."""
    return file.stem.partition("_")[2]


def epoch_folder(epoch: int) -> str:
    """Return the name of the folder below ``result`` with the evaluation after an epoch."""
    return f"epoch_{epoch}"


def epoch_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of a run with the evaluations after epochs, in order of epochs."""
    matches = [(re.fullmatch(r"epoch_([0-9]{1,9})", path.name), path) for path in (folder / RESULT).glob("epoch_*")]
    return dict(sorted((int(match[1]), path) for match, path in matches if match and path.is_dir()))


def json_line(record: Mapping[str, Any] | DataclassInstance) -> str:
    """Return a line of a JSON-lines file, with null in place of numbers that are not finite, because JSON has no such numbers."""
    content = record if isinstance(record, Mapping) else asdict(record)
    plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in content.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"


def parse(kind: type[T], content: Mapping[str, Any]) -> T:
    """Return an object of a JSON file as an instance of a dataclass.

    Unknown keys are ignored. If a key is missing or has a value of another type, its field gets the empty value of its type:
    None, "", False or an empty container.

    Raises:
        ValueError: If an integer is missing whose field cannot be None.
    """
    hints = _hints(kind)
    values = {name: _convert(hint, content.get(name)) for name, hint in hints.items()}
    if missing := [name for name, hint in hints.items() if hint is int and values[name] is None]:
        raise ValueError(f"expected a whole number as '{missing[0]}'")
    return kind(**values)


def parse_all(kind: type[T], rows: Iterable[Mapping[str, Any]]) -> list[T]:
    """Return the objects of a JSON-lines file as instances of a dataclass, without those for which :func:`parse` raises."""
    records = []
    for row in rows:
        with suppress(ValueError):
            records.append(parse(kind, row))
    return records


_SCALARS: dict[Any, Callable[[Any], Any]] = {int: whole_number, float: number, str: text, bool: lambda value: value is True}


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _convert(hint: Any, value: Any) -> Any:
    """Return a value of a JSON file as the type of a field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        if value is None:
            return None
        options = [option for option in arguments if option is not type(None)]
        fitting = [option for option in options if isinstance(value, get_origin(option) or option)]
        return _convert((fitting or options)[0], value)
    if origin is dict:
        items = {key: _convert(arguments[1], item) for key, item in mapping(value).items()}
        return items if arguments[1] in (Any, float | None) else {key: item for key, item in items.items() if item is not None}
    if origin in (list, tuple):
        element = get_origin(arguments[0]) or arguments[0]
        elements = [item for item in value if element is not dict or isinstance(item, dict)] if isinstance(value, list) else []
        return origin(converted for item in elements if (converted := _convert(arguments[0], item)) is not None)
    if isinstance(hint, type) and is_dataclass(hint):
        return parse(hint, value) if mapping(value) else None
    return value if hint is Any else _SCALARS[hint](value)

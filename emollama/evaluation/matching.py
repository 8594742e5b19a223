"""Matching of the predictions in several files with references: the same samples in the same order for every file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import splitext

from emollama.data.annotations import padded_name
from emollama.data.label_map import LabelMap
from emollama.errors import UserError
from emollama.evaluation.input_files import CAPTION_FIELDS, PredictionFile, read_predictions, read_references
from emollama.evaluation.predictions import CAPTION, DESCRIPTION_TASKS, Prediction
from emollama.evaluation.references import References, merge_references, relabel
from emollama.evaluation.word_lists import is_broken_list
from emollama.listing import abbreviated
from emollama.suggestions import did_you_mean

EMPTY = ("", "[]")  # predictions without words
EXAMPLES = 3  # names in a message
TASKS = ("emotion", *CAPTION_FIELDS, CAPTION)


@dataclass(frozen=True)
class Matched:
    """The predictions of one file for one task.

    Attributes:
        predictions: one prediction for every sample that has a reference, in order of names; its text is "" if the file has none.
        missing: samples without a prediction.
        unknown: names of samples with a prediction and without a reference; these predictions are ignored.
        empty: samples whose prediction has no words.
        unreadable: samples whose prediction is a word list that cannot be parsed.
    """

    predictions: tuple[Prediction, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    empty: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matching:
    """The predictions of all files, matched with the references.

    Attributes:
        files: paths of the prediction files, in the order of the command line.
        references: the references of all samples.
        tasks: task -> path -> predictions of that file, for the files that have predictions for the task.
    """

    files: tuple[str, ...]
    references: References
    tasks: dict[str, dict[str, Matched]]


def match(
    prediction_paths: Sequence[str],
    reference_paths: Sequence[str],
    task: str | None = None,
    aliases: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    mode: str | None = None,
) -> Matching:
    """Read prediction files and reference files and match them.

    Args:
        prediction_paths: paths of prediction files.
        reference_paths: paths of reference files; for other tasks, the references in a run's predictions are used.
        task: the only task to use, and the task of files that do not state theirs; None for all tasks.
        aliases: label in the files -> label that it stands for; case is ignored.
        labels: the allowed labels; None allows all labels of the references.
        mode: as in :func:`~emollama.evaluation.input_files.read_predictions`.

    Raises:
        UserError: If a file is unusable or appears twice, the task is unknown, there are no references, or no sample has both
            a prediction and a reference.
    """
    if len(set(prediction_paths)) < len(prediction_paths):
        raise UserError(f"--predictions: the same file appears twice in {' '.join(prediction_paths)}. Remove one of the two.")
    aliases = aliases or {}
    files = [read_predictions(path, aliases, mode) for path in prediction_paths]
    for file in files:
        if mode is not None and not any(prediction.mode for prediction in file.predictions):
            logging.getLogger("emollama").warning("%s: --mode does not apply, because the predictions have no modes", file.path)
    _require_task(task, files)
    files = [_with_task(file, task or "") for file in files]
    references = merge_references([read_references(path, aliases) for path in reference_paths], files, task)
    references = relabel(references, aliases, labels)
    files = [_with_reference_labels(file, references, labels) for file in files]
    files = [_with_tasks(_with_image_names(file, references), files, references, task) for file in files]
    tasks: dict[str, dict[str, Matched]] = {}
    for file in files:
        for predicted_task in sorted(file.tasks):
            tasks.setdefault(predicted_task, {})[file.path] = _matched(file, predicted_task, references)
    return Matching(tuple(prediction_paths), references, tasks)


def _require_task(task: str | None, files: Sequence[PredictionFile]) -> None:
    tasks = list(dict.fromkeys([*TASKS, *(name for file in files for name in sorted(file.tasks) if name)]))
    if task is not None and task not in tasks:
        raise UserError(f"--task: unknown task '{task}'.{did_you_mean(task, tasks)} Expected one of {abbreviated(tasks)}.")


def _with_task(file: PredictionFile, task: str) -> PredictionFile:
    """Return the file with ``task`` set on the predictions that have no task."""
    return replace(file, predictions=tuple(replace(prediction, task=prediction.task or task) for prediction in file.predictions))


def _with_reference_labels(file: PredictionFile, references: References, labels: Sequence[str] | None) -> PredictionFile:
    """Replace other forms of a label in a column of labels, such as happiness for happy, as in references."""
    if not file.of_labels:
        return file
    vocabulary = LabelMap(sorted(set(map(str, references.by_task.get("emotion", {}).values()))) if labels is None else labels)
    texts = ((prediction, vocabulary.label_or_synonym(prediction.text)) for prediction in file.predictions)
    return replace(file, predictions=tuple(replace(prediction, text=text or prediction.text) for prediction, text in texts))


def _with_image_names(file: PredictionFile, references: References) -> PredictionFile:
    """Replace each ``image_id`` of a file by the image's name in the references, which has no file extension."""
    if not file.by_image:
        return file
    captions = references.by_task.get(CAPTION, {})

    def name(image_id: str) -> str:
        whole = references.ids.get(image_id, image_id)
        return splitext(whole)[0] if whole not in captions and splitext(whole)[0] in captions else whole

    return replace(file, predictions=tuple(replace(prediction, name=name(prediction.name)) for prediction in file.predictions))


def _with_tasks(
    file: PredictionFile, files: Sequence[PredictionFile], references: References, task: str | None
) -> PredictionFile:
    """Return the file with the predictions for tasks that have references, each with its task.

    Raises:
        UserError: If no prediction is left, or predictions without a task could belong to several tasks.
    """
    if "" in file.tasks:
        file = _with_task(file, _inferred_task(file, files, references))
    scorable = {name for name in file.tasks if references.cover(name)}
    chosen = scorable if task is None else scorable & {task}
    if not chosen:
        predicted = ", ".join(sorted(filter(None, file.tasks))) or "no specific task"
        covered = ", ".join(sorted(filter(None, references.by_task))) or "descriptions without a task"
        raise UserError(f"{file.path}: nothing to score. The predictions are for {predicted}; the references are for {covered}.")
    return replace(file, predictions=tuple(prediction for prediction in file.predictions if prediction.task in chosen))


def _inferred_task(file: PredictionFile, files: Sequence[PredictionFile], references: References) -> str:
    """Return the task of predictions that do not state theirs: the other files' task, if it has references."""
    described = any(task in DESCRIPTION_TASKS for task in references.by_task)
    labelled = "emotion" in references.by_task and (file.of_labels or not described)
    captioned = CAPTION in references.by_task and not described
    candidates = ["emotion"] if labelled else [CAPTION] if captioned else [CAPTION, *DESCRIPTION_TASKS]
    stated = {name for stating_file in files for name in stating_file.tasks if references.cover(name)}
    possible = sorted(stated & {*candidates} - {""})
    if len(possible) > 1:
        raise UserError(f"{file.path}: the predictions could be for {' or '.join(possible)}. State the task with --task.")
    return possible[0] if possible else candidates[-1]


def _matched(file: PredictionFile, task: str, references: References) -> Matched:
    task_references = {
        padded_name(name, references.digits): reference for name, reference in references.by_task.get(task, {}).items()
    }
    names = sorted(task_references.keys() | {padded_name(name, references.digits) for name in references.openset})
    own = [prediction for prediction in file.predictions if prediction.task == task]
    by_name = {padded_name(prediction.name, references.digits): prediction for prediction in own}
    if len(by_name) < len(own):
        images, names_of_clips = "by number and by file name, or with and without an extension", "with and without leading zeros"
        raise UserError(
            f"{file.path}: a sample appears twice, {images if file.by_image else names_of_clips}. Remove one of the two."
        )
    if not by_name.keys() & {*names}:
        raise _nothing_in_common(file, sorted(by_name), names, references)
    broken = {padded_name(name, references.digits) for name in file.unreadable}
    predictions = [
        replace(by_name.get(name, Prediction(name, task, "")), name=name, reference=task_references.get(name)) for name in names
    ]
    texts = [(prediction.name, prediction.text) for prediction in predictions]
    return Matched(
        predictions=tuple(predictions),
        missing=tuple(name for name in names if name not in by_name),
        unknown=tuple(sorted(by_name.keys() - {*names})),
        empty=tuple(name for name, text in texts if name in by_name and text.strip() in EMPTY),
        unreadable=tuple(name for name, text in texts if name in broken or (task in DESCRIPTION_TASKS and is_broken_list(text))),
    )


def _nothing_in_common(
    file: PredictionFile, prediction_names: Sequence[str], names: Sequence[str], references: References
) -> UserError:
    predicted, expected = (", ".join(map(repr, examples[:EXAMPLES])) for examples in (prediction_names, names))
    hint = ""
    if {_bare(name) for name in prediction_names} & {_bare(name) for name in names}:
        hint = " The names differ only in a folder or a file extension: use the same spelling in both files."
    elif file.by_image and not references.ids and all(name.isdecimal() for name in prediction_names):
        hint = ' If these are image numbers, pass COCO\'s captions with --truth: their "images" list the file names.'
    names_of_both = f"The file has {predicted}; the references have {expected}."
    return UserError(f"{file.path}: no sample in common with the references. {names_of_both}{hint}")


def _bare(name: str) -> str:
    """Return a sample's name without folders and extension."""
    return splitext(name.replace("\\", "/").rpartition("/")[2])[0]

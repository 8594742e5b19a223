"""Matching of the answers in several files with reference data: the same samples in the same order for every file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import splitext

from emollama.data.annotations import LABELS
from emollama.errors import UserError
from emollama.evaluation.answer_files import CAPTION_FIELDS, AnswerFile, TruthFile, read_answers, read_truth
from emollama.evaluation.answers import Answer, Reference
from emollama.evaluation.captions.gathering import CAPTION
from emollama.evaluation.scoring import DESCRIBING
from emollama.evaluation.word_lists import is_broken_list
from emollama.listing import abbreviated
from emollama.registry import did_you_mean

EMPTY = ("", "[]")  # answers without words
EXAMPLES = 3  # names in a message
TASKS = ("emotion", *CAPTION_FIELDS, CAPTION)


@dataclass(frozen=True)
class Matched:
    """The answers of one file to one task.

    Attributes:
        answers: one answer for every sample of the reference data, in order of names; "" if the file has none.
        missing: samples without an answer.
        unknown: names of answers to samples that have no reference data; these answers are ignored.
        empty: samples whose answer has no words.
        unreadable: samples whose answer is a word list that cannot be parsed.
    """

    answers: tuple[Answer, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    empty: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truth:
    """The reference data of all samples.

    Attributes:
        references: task -> sample name -> label, description, or captions.
        openset: sample name -> emotion words; empty if there are none.
        openset_path: file that contains the emotion words.
        digits: number of digits to which numeric names are padded with zeros; 0 leaves names unchanged.
        is_emer: whether the descriptions may be EMER's.
        ids: image number -> image name.
    """

    references: dict[str, Mapping[str, Reference]] = field(default_factory=dict)
    openset: dict[str, tuple[str, ...]] = field(default_factory=dict)
    openset_path: str | None = None
    digits: int = 0
    is_emer: bool = False
    ids: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Matching:
    """The answers of all files, matched with the reference data.

    Attributes:
        files: paths of the answer files, in the order of the command line.
        truth: the reference data.
        tasks: task -> path -> answers of that file, for the files that answer the task.
    """

    files: tuple[str, ...]
    truth: Truth
    tasks: dict[str, dict[str, Matched]]


def match(
    predictions: Sequence[str], truths: Sequence[str], task: str | None = None, aliases: Mapping[str, str] | None = None
) -> Matching:
    """Read answer files and reference files and match them.

    Args:
        predictions: paths of answer files.
        truths: paths of reference files; for tasks that they do not contain, the references in the answers of a run are used.
        task: the only task to use, and the task of files that do not state theirs; None for all tasks.
        aliases: label in the reference data -> label that it stands for; case is ignored.

    Raises:
        UserError: If a file is unusable or appears twice, the task is unknown, there is no reference data, or no sample has both
            an answer and reference data.
    """
    if len(set(predictions)) < len(predictions):
        raise UserError(f"--predictions: the same file appears twice in {' '.join(predictions)}. Remove one of the two.")
    files = [read_answers(path) for path in predictions]
    _require_task(task, files)
    files = [_with_task(file, task or "") for file in files]
    truth = _relabelled(_merged_truth([read_truth(path) for path in truths], files, task), aliases or {})
    files = [_with_tasks(_with_image_names(file, truth), files, truth, task) for file in files]
    tasks: dict[str, dict[str, Matched]] = {}
    for file in files:
        for task_with_answers in sorted({answer.task for answer in file.answers}):
            tasks.setdefault(task_with_answers, {})[file.path] = _matched(file, task_with_answers, truth)
    return Matching(tuple(predictions), truth, tasks)


def task_name(task: str) -> str:
    """Return the name of a task as it appears in messages."""
    return f"the task '{task}'" if task else "answers without a task"


def _require_task(task: str | None, files: Sequence[AnswerFile]) -> None:
    tasks = list(dict.fromkeys([*TASKS, *(answer.task for file in files for answer in file.answers if answer.task)]))
    if task is not None and task not in tasks:
        raise UserError(f"--task: unknown task '{task}'.{did_you_mean(task, tasks)} Expected one of {abbreviated(tasks)}.")


def allowed_labels(truth: Truth, labels: Sequence[str] | None) -> list[str]:
    """Return the labels that answers may have: ``labels``, or those of the reference data in their usual order.

    Raises:
        UserError: If the reference data has labels that are not in ``labels`` (all are listed).
    """
    true_labels = set(map(str, truth.references.get("emotion", {}).values()))
    if labels is None:
        return sorted(true_labels, key=lambda label: (LABELS.index(label) if label in LABELS else len(LABELS), label))
    if other := sorted(label for label in true_labels if label.casefold() not in {name.casefold() for name in labels}):
        listed = abbreviated(map(repr, other))
        raise UserError(f"--labels: the reference data has other labels: {listed}. Add them, or map them with --aliases.")
    return list(labels)


def _relabelled(truth: Truth, aliases: Mapping[str, str]) -> Truth:
    if "emotion" not in truth.references:
        return truth
    meaning = {alias.casefold(): label for alias, label in aliases.items()}
    true_labels = {name: str(label) for name, label in truth.references["emotion"].items()}
    labels = {name: meaning.get(label.casefold(), label) for name, label in true_labels.items()}
    return replace(truth, references=truth.references | {"emotion": labels})


def _merged_truth(truth_files: Sequence[TruthFile], files: Sequence[AnswerFile], task: str | None) -> Truth:
    """Merge all reference files, and add the references in the answers (to ``task``, or to all tasks if None)."""
    references: dict[str, Mapping[str, Reference]] = {}
    for file in truth_files:
        for kind, table in file.references.items():
            if kind in references:
                raise UserError(f"--truth: {file.path} has the same kind of data as another file. Specify one file of each kind.")
            references[kind] = table
    word_files = [file for file in truth_files if file.openset is not None]
    if len(word_files) > 1:
        paths = " and in ".join(file.path for file in word_files)
        raise UserError(f"--truth: there are emotion words in {paths}. Specify one file of each kind.")
    answers = [(file.path, answer) for file in files for answer in file.answers if task is None or answer.task == task]
    own = _own_references((path, answer) for path, answer in answers if _reference(answer) and answer.task not in references)
    if not references and not own and not word_files:
        tasks = sorted({answer.task for file in files for answer in file.answers} - {""})
        hint = f"; the answers are to {abbreviated(tasks)}" if tasks else ""
        about = f" to the task '{task}'" if task is not None else ""
        raise UserError(
            f"--truth is required: none of the answers{about} has a reference{hint}. Specify a file with the references."
        )
    return Truth(
        references=references | own,
        openset={name: tuple(words) for file in word_files for name, words in (file.openset or {}).items()},
        openset_path=word_files[0].path if word_files else None,
        digits=max((file.digits for file in truth_files), default=0),
        is_emer=any(file.is_emer for file in truth_files) or any(kind in own for kind in DESCRIBING),
        ids={number: name for file in truth_files for number, name in file.ids.items()},
    )


def _own_references(answers: Iterable[tuple[str, Answer]]) -> dict[str, dict[str, Reference]]:
    """Map task and sample name to the references that the answers contain.

    Args:
        answers: (path of its file, answer).

    Raises:
        UserError: If a sample has two different references.
    """
    references: dict[str, dict[str, Reference]] = {}
    for path, answer in answers:
        reference = _reference(answer)
        if references.setdefault(answer.task, {}).setdefault(answer.name, reference) != reference:
            raise UserError(
                f"{path}: the reference of '{answer.name}' ({task_name(answer.task)}) differs from that in a previous file."
                " Specify the correct references with --truth."
            )
    return references


def _reference(answer: Answer) -> Reference:
    """Return the reference that an answer contains: a list for captions."""
    return answer.captions if answer.task == CAPTION else answer.truth or ""


def _with_task(file: AnswerFile, task: str) -> AnswerFile:
    """Return the file with ``task`` set on the answers that have no task."""
    return replace(file, answers=tuple(replace(answer, task=answer.task or task) for answer in file.answers))


def _with_image_names(file: AnswerFile, truth: Truth) -> AnswerFile:
    """Replace each ``image_id`` of a file by the image's name in the reference data, which has no file extension."""
    if not file.by_image:
        return file
    captions = truth.references.get(CAPTION, {})

    def name(image_id: str) -> str:
        whole = truth.ids.get(image_id, image_id)
        return splitext(whole)[0] if whole not in captions and splitext(whole)[0] in captions else whole

    return replace(file, answers=tuple(replace(answer, name=name(answer.name)) for answer in file.answers))


def _with_tasks(file: AnswerFile, files: Sequence[AnswerFile], truth: Truth, task: str | None) -> AnswerFile:
    """Return the file with the answers to tasks that have reference data, each with its task.

    Raises:
        UserError: If no answer is left, or answers without a task could belong to several tasks.
    """
    if any(not answer.task for answer in file.answers):
        file = _with_task(file, _inferred_task(file, files, truth))
    scorable = {answer.task for answer in file.answers if truth.openset or answer.task in truth.references}
    chosen = scorable if task is None else scorable & {task}
    if not chosen:
        answered, covered = ({*filter(None, tasks)} for tasks in ({a.task for a in file.answers}, truth.references))
        here = ", ".join(sorted(answered)) or "no specific task"
        there = ", ".join(sorted(covered)) or "descriptions without a task"
        raise UserError(f"{file.path}: nothing to score. The answers are to {here}; the reference data is for {there}.")
    return replace(file, answers=tuple(answer for answer in file.answers if answer.task in chosen))


def _inferred_task(file: AnswerFile, files: Sequence[AnswerFile], truth: Truth) -> str:
    """Return the task of answers that do not state theirs: the other files' task, if the reference data supports it."""
    described = any(task in DESCRIBING for task in truth.references)
    labelled = "emotion" in truth.references and (file.of_labels or not described)
    captioned = CAPTION in truth.references and not described
    candidates = ["emotion"] if labelled else [CAPTION] if captioned else [CAPTION, *DESCRIBING]
    stated = {answer.task for other in files for answer in other.answers if truth.openset or answer.task in truth.references}
    possible = sorted(stated & {*candidates} - {""})
    if len(possible) > 1:
        raise UserError(f"{file.path}: the answers could be to {' or '.join(possible)}. State the task with --task.")
    return possible[0] if possible else candidates[-1]


def _matched(file: AnswerFile, task: str, truth: Truth) -> Matched:
    true = {_padded(name, truth.digits): reference for name, reference in truth.references.get(task, {}).items()}
    names = sorted(true.keys() | {_padded(name, truth.digits) for name in truth.openset})
    own = [answer for answer in file.answers if answer.task == task]
    by_name = {_padded(answer.name, truth.digits): answer for answer in own}
    if len(by_name) < len(own):
        images, clips = "by number and by file name, or with and without an extension", "with and without leading zeros"
        raise UserError(f"{file.path}: a sample appears twice, {images if file.by_image else clips}. Remove one of the two.")
    if not by_name.keys() & {*names}:
        raise _nothing_in_common(file, sorted(by_name), names, truth)
    broken = {_padded(name, truth.digits) for name in file.unreadable}
    answers = [replace(by_name.get(name, Answer(name, task, "")), name=name, reference=true.get(name)) for name in names]
    return Matched(
        answers=tuple(answers),
        missing=tuple(name for name in names if name not in by_name),
        unknown=tuple(sorted(by_name.keys() - {*names})),
        empty=tuple(a.name for a in answers if a.name in by_name and a.prediction.strip() in EMPTY),
        unreadable=tuple(a.name for a in answers if a.name in broken or (task in DESCRIBING and is_broken_list(a.prediction))),
    )


def _nothing_in_common(file: AnswerFile, answer_names: Sequence[str], names: Sequence[str], truth: Truth) -> UserError:
    ours, theirs = (", ".join(map(repr, some[:EXAMPLES])) for some in (answer_names, names))
    hint = ""
    if {_bare(name) for name in answer_names} & {_bare(name) for name in names}:
        hint = " The names differ only in a folder or an extension: use the same spelling in both files."
    elif file.by_image and not truth.ids and all(name.isdecimal() for name in answer_names):
        hint = ' If these are image numbers, pass COCO\'s captions with --truth: their "images" list the file names.'
    names_of_both = f"The file has {ours}; the reference data has {theirs}."
    return UserError(f"{file.path}: no sample in common with the reference data. {names_of_both}{hint}")


def _bare(name: str) -> str:
    """Return a sample's name without its folder and its extension."""
    return splitext(name.replace("\\", "/").rpartition("/")[2])[0]


def _padded(name: str, digits: int) -> str:
    """Return a sample's name; a number is padded with zeros to ``digits`` digits."""
    return name.zfill(digits) if name.isdecimal() else name

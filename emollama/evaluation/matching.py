"""Answers of several files beside what is true: the same clips for all, in the same order."""

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

EMPTY = ("", "[]")  # an answer without words
EXAMPLES = 3
TASKS = ("emotion", *CAPTION_FIELDS, CAPTION)


@dataclass(frozen=True)
class Matched:
    """A file's answers to one task.

    Attributes:
        answers: one for every clip of the truth, in order of names; "" where the file has none.
        missing: clips without an answer.
        unknown: answers to clips of which no truth is known; they are left out.
        empty: clips whose answer has no words.
        unreadable: clips whose answer is a broken list of words.
    """

    answers: tuple[Answer, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    empty: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truth:
    """What is true about the clips.

    Attributes:
        references: task -> clip -> label, description, or captions.
        openset: clip -> emotion words; empty where none are known.
        openset_path: their file.
        digits: that clips are called with that are called by numbers; 0 for names as written.
        ids: an image's number -> its name.
        is_emer: whether descriptions may be EMER's.
    """

    references: dict[str, Mapping[str, Reference]] = field(default_factory=dict)
    openset: dict[str, tuple[str, ...]] = field(default_factory=dict)
    openset_path: str | None = None
    digits: int = 0
    is_emer: bool = False
    ids: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Matching:
    """All files beside the truth: ``tasks`` is task -> file -> its answers, of files that answer the task.

    Files stand in the order in which they were given.
    """

    files: tuple[str, ...]
    truth: Truth
    tasks: dict[str, dict[str, Matched]]


def match(
    predictions: Sequence[str], truths: Sequence[str], task: str | None = None, aliases: Mapping[str, str] | None = None
) -> Matching:
    """Read files of answers and of truth and bring them together.

    Args:
        predictions: files of answers.
        truths: files of truth; what they do not speak of is taken from the references that answers of a run have.
        task: the only one to look at, and that of files which do not say; None for all.
        aliases: true label -> the label that it stands for; case does not count.

    Raises:
        UserError: unusable files, a file given twice, a task that is none, no truth, or no clip in common.
    """
    if len(set(predictions)) < len(predictions):
        raise UserError(f"--predictions: a file is given twice in {' '.join(predictions)}")
    files = [read_answers(path) for path in predictions]
    _require_task(task, files)
    files = [_with_task(file, task or "") for file in files]
    truth = _relabelled(_truth([read_truth(path) for path in truths], files, task), aliases or {})
    files = [_with_tasks(_by_name(file, truth), files, truth, task) for file in files]
    tasks: dict[str, dict[str, Matched]] = {}
    for file in files:
        for asked in sorted({answer.task for answer in file.answers}):
            tasks.setdefault(asked, {})[file.path] = _matched(file, asked, truth)
    return Matching(tuple(predictions), truth, tasks)


def task_name(task: str) -> str:
    """A task as messages call it."""
    return f"the task '{task}'" if task else "answers that name no task"


def _require_task(task: str | None, files: Sequence[AnswerFile]) -> None:
    known = list(dict.fromkeys([*TASKS, *(answer.task for file in files for answer in file.answers if answer.task)]))
    if task is not None and task not in known:
        raise UserError(f"--task: there is no task '{task}'.{did_you_mean(task, known)} Known are {abbreviated(known)}.")


def labels_of(truth: Truth, given: Sequence[str] | None) -> list[str]:
    """The labels that answers may have: those given, or those that the truth has, in the usual order.

    Raises:
        UserError: the truth has others than those given (all of them are told).
    """
    known = set(map(str, truth.references.get("emotion", {}).values()))
    if given is None:
        return sorted(known, key=lambda label: (LABELS.index(label) if label in LABELS else len(LABELS), label))
    if other := sorted(label for label in known if label.casefold() not in {name.casefold() for name in given}):
        told = abbreviated(map(repr, other))
        raise UserError(f"--labels: the truth has others: {told}. Add them, or say what they stand for with --aliases.")
    return list(given)


def _relabelled(truth: Truth, aliases: Mapping[str, str]) -> Truth:
    if "emotion" not in truth.references:
        return truth
    meaning = {alias.casefold(): label for alias, label in aliases.items()}
    given = {name: str(label) for name, label in truth.references["emotion"].items()}
    labels = {name: meaning.get(label.casefold(), label) for name, label in given.items()}
    return replace(truth, references=truth.references | {"emotion": labels})


def _truth(given: Sequence[TruthFile], files: Sequence[AnswerFile], task: str | None) -> Truth:
    """All files of truth as one, completed by the references of answers (to one task, or None for all)."""
    references: dict[str, Mapping[str, Reference]] = {}
    for file in given:
        for kind, table in file.references.items():
            if kind in references:
                raise UserError(f"--truth: {file.path} says the same kind of thing as another file. Give one of each kind.")
            references[kind] = table
    words = [file for file in given if file.openset is not None]
    if len(words) > 1:
        raise UserError(f"--truth: emotion words in {' and in '.join(file.path for file in words)}. Give one of each kind.")
    answers = [(file.path, answer) for file in files for answer in file.answers if task is None or answer.task == task]
    own = _own_references((path, answer) for path, answer in answers if _reference_of(answer) and answer.task not in references)
    if not references and not own and not words:
        answered = sorted({answer.task for file in files for answer in file.answers} - {""})
        told = f"; their tasks are {abbreviated(answered)}" if answered else ""
        about = f" to the task '{task}'" if task is not None else ""
        raise UserError(
            f"--truth is needed: none of the answers{about} has a reference{told}. Name what is true about the clips."
        )
    return Truth(
        references=references | own,
        openset={name: tuple(found) for file in words for name, found in (file.openset or {}).items()},
        openset_path=words[0].path if words else None,
        digits=max((file.digits for file in given), default=0),
        is_emer=any(file.is_emer for file in given) or any(kind in own for kind in DESCRIBING),
        ids={number: name for file in given for number, name in file.ids.items()},
    )


def _own_references(answers: Iterable[tuple[str, Answer]]) -> dict[str, dict[str, Reference]]:
    """task -> clip -> the reference that answers bring along.

    Args:
        answers: each with its file.

    Raises:
        UserError: one clip has two references.
    """
    found: dict[str, dict[str, Reference]] = {}
    for path, answer in answers:
        reference = _reference_of(answer)
        if found.setdefault(answer.task, {}).setdefault(answer.name, reference) != reference:
            raise UserError(
                f"{path}: the reference of '{answer.name}', of {task_name(answer.task)}, is another one than in a file before it."
                " Say with --truth what is true."
            )
    return found


def _reference_of(answer: Answer) -> Reference:
    """The reference that an answer brings along: of captions a list."""
    return answer.captions if answer.task == CAPTION else answer.truth or ""


def _with_task(file: AnswerFile, task: str) -> AnswerFile:
    """The file's answers with a task for those that do not say theirs."""
    return replace(file, answers=tuple(replace(answer, task=answer.task or task) for answer in file.answers))


def _by_name(file: AnswerFile, truth: Truth) -> AnswerFile:
    """The file's answers by the truth's names of images, which have no ending, where it calls them by an ``image_id``."""
    if not file.by_image:
        return file
    known = truth.references.get(CAPTION, {})

    def name(given: str) -> str:
        whole = truth.ids.get(given, given)
        return splitext(whole)[0] if whole not in known and splitext(whole)[0] in known else whole

    return replace(file, answers=tuple(replace(answer, name=name(answer.name)) for answer in file.answers))


def _with_tasks(file: AnswerFile, files: Sequence[AnswerFile], truth: Truth, task: str | None) -> AnswerFile:
    """The file's answers to tasks of which a truth is known, each with its task.

    Raises:
        UserError: none is left, or several tasks come into question for answers that do not say theirs.
    """
    if any(not answer.task for answer in file.answers):
        file = _with_task(file, _task_of_silent(file, files, truth))
    known = {answer.task for answer in file.answers if truth.openset or answer.task in truth.references}
    wanted = known if task is None else known & {task}
    if not wanted:
        said, about = ({*filter(None, tasks)} for tasks in ({a.task for a in file.answers}, truth.references))
        here = f"It has answers to {', '.join(sorted(said)) or 'no task in particular'}"
        there = ", ".join(sorted(about)) or "descriptions of no task in particular"
        raise UserError(f"{file.path}: nothing to score. {here}; the truth is about {there}.")
    return replace(file, answers=tuple(answer for answer in file.answers if answer.task in wanted))


def _task_of_silent(file: AnswerFile, files: Sequence[AnswerFile], truth: Truth) -> str:
    """The task of answers that do not say theirs: that of the other files, where the truth has what fits it."""
    described = any(known in DESCRIBING for known in truth.references)
    labelled = "emotion" in truth.references and (file.of_labels or not described)
    captioned = CAPTION in truth.references and not described
    fitting = ["emotion"] if labelled else [CAPTION] if captioned else [CAPTION, *DESCRIBING]
    said = {answer.task for other in files for answer in other.answers if truth.openset or answer.task in truth.references}
    near = sorted(said & {*fitting} - {""})
    if len(near) > 1:
        raise UserError(f"{file.path}: its answers may be to {' or '.join(near)}. Say which with --task.")
    return near[0] if near else fitting[-1]


def _matched(file: AnswerFile, task: str, truth: Truth) -> Matched:
    references = truth.references.get(task, {})
    known = {_called(name, truth.digits): reference for name, reference in references.items()}
    names = sorted(known.keys() | {_called(name, truth.digits) for name in truth.openset})
    asked = [answer for answer in file.answers if answer.task == task]
    given = {_called(answer.name, truth.digits): answer for answer in asked}
    if len(given) < len(asked):
        images, clips = "by its number and its file, or with an ending and without", "with zeros before its number and without"
        raise UserError(f"{file.path}: a clip is there twice, {images if file.by_image else clips}. Keep one of the two.")
    if not given.keys() & {*names}:
        raise _nothing_in_common(file, sorted(given), names, truth)
    broken = {_called(name, truth.digits) for name in file.unreadable}
    answers = [replace(given.get(name, Answer(name, task, "")), name=name, reference=known.get(name)) for name in names]
    return Matched(
        answers=tuple(answers),
        missing=tuple(name for name in names if name not in given),
        unknown=tuple(sorted(given.keys() - {*names})),
        empty=tuple(a.name for a in answers if a.name in given and a.prediction.strip() in EMPTY),
        unreadable=tuple(a.name for a in answers if a.name in broken or (task in DESCRIBING and is_broken_list(a.prediction))),
    )


def _nothing_in_common(file: AnswerFile, given: Sequence[str], names: Sequence[str], truth: Truth) -> UserError:
    ours, theirs = (", ".join(map(repr, some[:EXAMPLES])) for some in (given, names))
    hint = ""
    if {_bare(name) for name in given} & {_bare(name) for name in names}:
        hint = " They differ by a folder or an ending alone: write the names alike."
    elif file.by_image and not truth.ids and all(name.isdecimal() for name in given):
        hint = " If these are numbers of images, give COCO's captions with --truth, whose \"images\" tell the files' names."
    return UserError(f"{file.path}: no clip in common with the truth. Its clips are called {ours}, the truth's {theirs}.{hint}")


def _bare(name: str) -> str:
    """A clip's name without folders and without an ending."""
    return splitext(name.replace("\\", "/").rpartition("/")[2])[0]


def _called(name: str, digits: int) -> str:
    """A clip's name; a number is filled up with zeros."""
    return name.zfill(digits) if name.isdecimal() else name

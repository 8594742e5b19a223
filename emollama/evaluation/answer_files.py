"""Files of answers, ours and others', and files that say what is true about clips. The form is told by ending and header.

Answers: ``predictions_*.jsonl`` of a run; CSV ``names,chi_reasons`` (English in spite of the name) and ``name`` with one of
:data:`ANSWER_COLUMNS`; submissions (``.npz``) of lists of words; captions by image: COCO's results, a JSON list of
``{"image_id": 7, "caption": "..."}`` (source: COCO's page on the format of results), and CSV ``image_id,caption``.

Truth: tables of EMER (``names,emotions,subtitles,reasons`` and ``name,chinese,english``), of labels (``name,label``,
``name,discrete``, DFEW's ``video_name,label``), of words (``name,openset``) and of one's own (``name,emotion,reason``);
annotation lists (``.txt``); captions and words as JSON objects; captions of images (:mod:`emollama.data.captions`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from typing import Any

from emollama.data.annotations import DFEW_LABELS, Clip, column_of, read_annotations, read_clip_table, read_json, read_rows
from emollama.data.captions import read_captioned
from emollama.data.problems import Problem, Report
from emollama.errors import UserError
from emollama.evaluation.answers import Answer, Reference
from emollama.evaluation.captions.gathering import CAPTION
from emollama.evaluation.openset import read_openset
from emollama.evaluation.submission import read_items, read_submission
from emollama.evaluation.word_lists import is_list
from emollama.listing import abbreviated
from emollama.paths import read_text, require_file

LABEL_COLUMNS = ("label", "discrete", "emotion")
DESCRIPTION_COLUMNS = ("reasons", "english", "reason")
ANSWER_COLUMNS = ("chi_reasons", "prediction", "english", "reason", "reasons", "label", "discrete", "openset")
CAPTION_FIELDS = {"reason": ("caption", "smp_reason_caption"), "reason_v2": ("smp_reason_caption", "caption")}
IMAGE_COLUMNS = {"image_id", "caption"}
RESULTS = 'COCO\'s results, [{"image_id": 7, "caption": "..."}, ...]'
EMER_COLUMNS = ("reasons", "english")  # that only EMER's tables have
DFEW_DIGITS = 5  # that clips of DFEW are called with; its tables leave out the zeros


@dataclass(frozen=True)
class AnswerFile:
    """The answers of one file.

    Attributes:
        path: as given.
        answers: in file order; their task is "" where the file does not say.
        of_labels: whether the file's column holds labels.
        unreadable: clips of a submission whose list of words is none.
        by_image: whether answers are called by an ``image_id``: an image's number, or its file without or with the ending.
    """

    path: str
    answers: tuple[Answer, ...]
    of_labels: bool = False
    unreadable: tuple[str, ...] = ()
    by_image: bool = False


@dataclass(frozen=True)
class TruthFile:
    """What one file says about clips.

    Attributes:
        path: as given.
        references: task -> clip -> its label, description or captions.
        openset: clip -> its emotion words, where the file holds them.
        digits: how many digits clips are called with that are called by numbers; 0 for names as written.
        ids: an image's number -> its name, where the file lists the two.
        is_emer: whether it is one of EMER's tables.
    """

    path: str
    references: Mapping[str, Mapping[str, Reference]] = field(default_factory=dict)
    openset: Mapping[str, tuple[str, ...]] | None = None
    digits: int = 0
    is_emer: bool = False
    ids: Mapping[str, str] = field(default_factory=dict)


def read_answers(path: str) -> AnswerFile:
    """Read a file of answers.

    Raises:
        UserError: no such file, none of the forms, or faulty and repeated rows (all of them, with their lines).
    """
    require_file(path, "--predictions")
    if path.endswith(".jsonl"):
        return AnswerFile(path, tuple(_of_run(path)))
    if path.endswith(".npz"):
        answers = tuple(Answer(name, "", repr(list(words))) for name, words in read_submission(path).items())
        return AnswerFile(path, answers, unreadable=tuple(name for name, item in read_items(path).items() if not is_list(item)))
    if path.endswith(".json"):
        return AnswerFile(path, tuple(_of_results(path)), by_image=True)
    if not path.endswith(".csv"):
        known = f".jsonl files of a run, from .csv tables, from .npz submissions and from .json files ({RESULTS})"
        raise UserError(f"{path}: answers are read from {known}")
    problems: list[Problem] = []
    header, rows = read_rows(path, "--predictions", problems.append)
    if {*header} >= IMAGE_COLUMNS:
        entries = ((f"line {line}", row) for line, row in rows)
        return AnswerFile(path, tuple(_by_image(path, entries, problems)), by_image=True)
    clips = _whole(lambda report: read_clip_table(path, None, report))
    column = column_of(path, list(clips[0].columns), ANSWER_COLUMNS)
    texts = {clip.name: clip.columns[column] for clip in clips}
    if column == "openset":
        texts = {name: repr(list(words)) for name, words in read_openset(path, "--predictions").items()}
    if column in LABEL_COLUMNS:
        texts = _emotions(path, texts)
    return AnswerFile(path, tuple(Answer(name, "", text) for name, text in texts.items()), column in LABEL_COLUMNS)


def read_truth(path: str) -> TruthFile:
    """Read a file that says what is true.

    Raises:
        UserError: as :func:`read_answers`; labels that are numbers other than DFEW's.
    """
    require_file(path, "--truth")
    if path.endswith(".txt"):
        listed = _whole(lambda report: read_annotations(path, report=report))
        return TruthFile(path, {"emotion": _emotions(path, {clip.name: clip.label for clip in listed})})
    if path.endswith(".json"):
        return _of_object(path)
    if not path.endswith(".csv"):
        raise UserError(f"{path}: truth is read from .csv tables, .txt lists and .json captions or words")
    clips = _whole(lambda report: read_clip_table(path, None, report))
    header = list(clips[0].columns)
    column_of(path, header, [*DESCRIPTION_COLUMNS, *LABEL_COLUMNS, "openset"])
    texts = {column: {clip.name: clip.columns[column] for clip in clips if clip.columns[column]} for column in header}
    labels = next((texts[column] for column in LABEL_COLUMNS if column in header), None)
    described = next((texts[column] for column in DESCRIPTION_COLUMNS if column in header), None)
    references = {} if described is None else {"": described, **dict.fromkeys(CAPTION_FIELDS, described)}
    if labels is not None:
        references["emotion"] = _emotions(path, labels)
    is_dfew = labels is not None and labels != references["emotion"]
    openset = read_openset(path, "--truth") if "openset" in header else None
    return TruthFile(path, references, openset, DFEW_DIGITS * is_dfew, any(column in header for column in EMER_COLUMNS))


def _of_run(path: str) -> Iterator[Answer]:
    """Answers of a ``predictions_*.jsonl``; task, reference and loss may be absent or null; NaN is null."""
    lines: dict[tuple[str, str], int] = {}
    problems = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            answer = _answer(line)
            if (first := lines.setdefault((answer.name, answer.task), number)) != number:
                raise ValueError(f"'{answer.name}' was answered on line {first} already. Remove one of the two.")
            yield answer
        except ValueError as error:
            problems.append(Problem("list", f"{path}, line {number}: {error}"))
    _refuse(problems)
    if not lines:
        raise UserError(f"{path}: no answer in it")


def _of_results(path: str) -> list[Answer]:
    table = read_json(path)
    if not isinstance(table, list):
        raise UserError(f"{path}: answers in .json files are {RESULTS}")
    return _by_image(path, ((f"entry {number}", entry) for number, entry in enumerate(table, 1)), [])


def _by_image(path: str, entries: Iterable[tuple[str, Any]], problems: list[Problem]) -> list[Answer]:
    """A caption an image.

    Args:
        path: the file.
        entries: each with its place in the file, as messages tell it.
        problems: that the file has already.
    """
    places: dict[str, str] = {}
    answers = []
    for place, entry in entries:
        try:
            answer = _captioned(entry)
            if (first := places.setdefault(answer.name, place)) != place:
                raise ValueError(f"the image '{answer.name}' has a caption in {first} already. Keep one of the two.")
            answers.append(answer)
        except ValueError as error:
            problems.append(Problem("list", f"{path}, {place}: {error}"))
    _refuse(problems)
    if not answers:
        raise UserError(f"{path}: no answer in it")
    return answers


def _captioned(entry: Any) -> Answer:
    """The answer of an entry; other keys than the two are passed over."""
    name, caption = (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
    if isinstance(name, bool) or not isinstance(name, int | str) or not str(name).strip() or not isinstance(caption, str):
        raise ValueError(f'expected an image_id and its caption, {{"image_id": 7, "caption": "..."}}, found {str(entry)[:60]}')
    return Answer(_written(str(name)), CAPTION, _written(caption))


def _answer(line: str) -> Answer:
    """One answer of a line.

    Raises:
        ValueError: not a JSON object with these fields.
    """
    try:
        row = json.loads(line, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    optional = {"task": str, "reference": str | list, "loss": float | int}
    kinds: dict[str, Any] = {"name": str, "prediction": str} | {key: kind | None for key, kind in optional.items()}
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
        raise ValueError("expected an object with the texts 'name' and 'prediction', and 'task', 'reference' and 'loss' if known")
    reference = row.get("reference")
    if isinstance(reference, list) and not all(isinstance(text, str) for text in reference):
        raise ValueError("'reference' is a list, and not all of it are texts")
    if reference is not None:
        reference = list(map(_written, reference)) if isinstance(reference, list) else _written(reference)
    return Answer(_written(row["name"]), row.get("task") or "", _written(row["prediction"]), reference, row.get("loss"))


def _written(text: str) -> str:
    """The text as a file can hold it: halves of broken characters, which JSON can spell, are question marks."""
    return text.encode("utf-8", "replace").decode()


def _whole(read: Callable[[Report], list[Clip]]) -> list[Clip]:
    """The clips of a file in which no row is faulty.

    Raises:
        UserError: with all that is wrong.
    """
    problems: list[Problem] = []
    try:
        clips = read(problems.append)
    except UserError:
        _refuse(problems)
        raise
    _refuse(problems)
    return clips


def _refuse(problems: Sequence[Problem]) -> None:
    """All that is wrong with a file at once."""
    if problems:
        raise UserError(abbreviated((problem.text for problem in problems), "\n"))


def _emotions(path: str, labels: dict[str, str]) -> dict[str, str]:
    """The labels; DFEW's numbers as the emotions that they stand for.

    Raises:
        UserError: other numbers.
    """
    written = set(labels.values()) - {""}
    if written and written <= DFEW_LABELS.keys():
        return {name: DFEW_LABELS.get(label, "") for name, label in labels.items()}
    if numbers := sorted(label for label in written if label.lstrip("-").isdecimal()):
        told = "EMER's lists hold 0 in place of an emotion; its tables (.csv) and captions (.json) hold descriptions"
        raise UserError(f"{path}: the labels {abbreviated(numbers)} are numbers, not emotions, nor DFEW's 1 to 7. {told}.")
    return labels


def _of_object(path: str) -> TruthFile:
    """Captions (an object a clip, or images with several each) or words (a list a clip)."""
    table: Any = read_json(path)
    if (isinstance(table, dict) and "annotations" in table) or (isinstance(table, list) and table):
        captions = {image.name: list(image.captions) for image in read_captioned(path) if image.captions}
        listed = table.get("images") if isinstance(table, dict) else None
        images = listed if isinstance(listed, list) else ()  # as in read_captioned, which has looked at them
        return TruthFile(path, {CAPTION: captions}, ids={str(image["id"]): splitext(image["file_name"])[0] for image in images})
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path}: expected one JSON object keyed by clip name, with captions or lists of words")
    if all(isinstance(words, list) for words in table.values()):
        return TruthFile(path, openset=read_openset(path, "--truth"))
    references: dict[str, dict[str, str]] = {task: _captions(table, fields) for task, fields in CAPTION_FIELDS.items()}
    references[""] = references["reason_v2"]
    if not references[""]:
        raise UserError(f"{path}: no clip has 'smp_reason_caption' or 'caption'")
    return TruthFile(path, references)


def _captions(table: dict[str, Any], fields: Sequence[str]) -> dict[str, str]:
    """Each clip's first caption of these fields that is text; clips without one are not among them."""
    found = {}
    for name, entry in table.items():
        captions = [entry.get(field) for field in fields] if isinstance(entry, dict) else []
        text = next((caption for caption in captions if isinstance(caption, str) and caption.strip()), None)
        if text is not None:
            found[name] = _written(text)
    return found

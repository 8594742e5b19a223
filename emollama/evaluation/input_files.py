"""Readers for prediction files of any program and for reference files. Extension and header determine the format.

Predictions: ``.jsonl`` (:mod:`emollama.evaluation.prediction_lines`); CSV ``names,chi_reasons`` (English text in spite of the
column name) and ``name`` with one of :data:`ANSWER_COLUMNS`; submissions (``.npz``) with lists of words; captions by image: COCO
results, a JSON list of ``{"image_id": 7, "caption": "..."}`` (source: COCO's page on result formats), and CSV
``image_id,caption``.

References: tables of EMER (``names,emotions,subtitles,reasons`` and ``name,chinese,english``), of labels (``name,label``,
``name,discrete``, DFEW's ``video_name,label``), of words (``name,openset``) and your own (``name,emotion,reason``);
annotation files (``.txt``); captions and words as JSON objects; captions of images (:mod:`emollama.data.captions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from typing import Any

from emollama.data.annotations import DFEW_DIGITS, Clip, read_annotations, read_clip_table, read_json
from emollama.data.captions import read_captioned_images
from emollama.data.csv_files import read_csv, require_column
from emollama.data.label_map import DATASET_LABELS, LabelMap
from emollama.data.problems import Problem, Report, raise_all
from emollama.errors import UserError
from emollama.evaluation.openset import read_openset
from emollama.evaluation.prediction_lines import read_lines
from emollama.evaluation.predictions import CAPTION, Prediction, Reference, parse_caption
from emollama.evaluation.submission import read_items, read_submission
from emollama.evaluation.word_lists import is_list
from emollama.listing import abbreviated
from emollama.paths import extension, require_file
from emollama.text_encoding import encodable

NO_ALIASES: Mapping[str, str] = {}
LABEL_COLUMNS = ("label", "discrete", "emotion")
DESCRIPTION_COLUMNS = ("reasons", "english", "reason")
ANSWER_COLUMNS = ("chi_reasons", "prediction", "english", "reason", "reasons", "label", "discrete", "openset")
CAPTION_FIELDS = {"reason": ("caption", "smp_reason_caption"), "reason_v2": ("smp_reason_caption", "caption")}
IMAGE_COLUMNS = {"image_id", "caption"}
RESULTS_FORMAT = 'COCO results, [{"image_id": 7, "caption": "..."}, ...]'
EMER_COLUMNS = ("reasons", "english")  # only EMER's tables have them


@dataclass(frozen=True)
class PredictionFile:
    """The predictions in one file.

    Attributes:
        path: path as the user wrote it.
        predictions: predictions in file order; their task is "" if the file does not state it.
        of_labels: whether the file's column contains labels.
        unreadable: names of samples of a submission whose word list cannot be parsed.
        by_image: whether samples are named by an ``image_id``: the number of an image, or its file with or without extension.
    """

    path: str
    predictions: tuple[Prediction, ...]
    of_labels: bool = False
    unreadable: tuple[str, ...] = ()
    by_image: bool = False

    @property
    def tasks(self) -> set[str]:
        """Tasks of the predictions."""
        return {prediction.task for prediction in self.predictions}


@dataclass(frozen=True)
class ReferenceFile:
    """The references in one file.

    Attributes:
        path: path as the user wrote it.
        references: task -> sample name -> label, description or captions.
        openset: sample name -> emotion words, if the file contains words.
        digits: number of digits to which numeric names are padded with zeros; 0 leaves names unchanged.
        is_emer: whether the file is one of EMER's tables.
        ids: image number -> image name, if the file lists both.
    """

    path: str
    references: Mapping[str, Mapping[str, Reference]] = field(default_factory=dict)
    openset: Mapping[str, tuple[str, ...]] | None = None
    digits: int = 0
    is_emer: bool = False
    ids: Mapping[str, str] = field(default_factory=dict)


def read_predictions(path: str, aliases: Mapping[str, str] = NO_ALIASES, mode: str | None = None) -> PredictionFile:
    """Read a file of predictions.

    Args:
        path: the file.
        aliases: label in a column of labels -> label that it stands for.
        mode: the part of the dataset to read from files of Emotion-LLaMA-v2, such as test1; None for all.

    Raises:
        UserError: If the file does not exist, its format is unknown, it has no predictions of the mode, or rows are invalid or
            repeated (all are listed, with lines).
    """
    require_file(path, "--predictions")
    if extension(path) == ".jsonl":
        return PredictionFile(path, tuple(read_lines(path, mode)))
    if extension(path) == ".npz":
        predictions = tuple(Prediction(name, "", repr(list(words))) for name, words in read_submission(path).items())
        unreadable = tuple(name for name, item in read_items(path).items() if not is_list(item))
        return PredictionFile(path, predictions, unreadable=unreadable)
    if extension(path) == ".json":
        return PredictionFile(path, tuple(_read_coco_results(path)), by_image=True)
    if extension(path) != ".csv":
        formats = f".jsonl (predictions of a run), .csv, .npz (submission) or .json ({RESULTS_FORMAT})"
        raise UserError(f"{path}: unknown format of predictions. Expected a file with the extension {formats}.")
    problems: list[Problem] = []
    header, rows = read_csv(path, "--predictions", problems.append)
    if {*header} >= IMAGE_COLUMNS:
        entries = ((f"line {line}", row) for line, row in rows)
        return PredictionFile(path, tuple(_image_predictions(path, entries, problems)), by_image=True)
    clips = _require_valid(lambda report: read_clip_table(path, None, report))
    column = require_column(path, list(clips[0].columns), ANSWER_COLUMNS)
    texts = {clip.name: clip.columns[column] for clip in clips}
    if column == "openset":
        words = read_openset(path, "--predictions")
        texts = {name: cell if cell.startswith("[") else repr(list(words[name])) for name, cell in texts.items()}
    if column in LABEL_COLUMNS:
        label_map = LabelMap((), [aliases])
        texts = {name: label_map.mapped(label) for name, label in _emotion_names(path, texts, aliases).items()}
    return PredictionFile(path, tuple(Prediction(name, "", text) for name, text in texts.items()), column in LABEL_COLUMNS)


def read_references(path: str, aliases: Mapping[str, str] = NO_ALIASES) -> ReferenceFile:
    """Read a file of references.

    Args:
        path: the file.
        aliases: label -> label that it stands for. They are not applied, but decide which numbers may be labels.

    Raises:
        UserError: As in :func:`read_predictions`, and if labels are numbers that are neither DFEW's nor aliases.
    """
    require_file(path, "--truth")
    if extension(path) == ".txt":
        annotated = _require_valid(lambda report: read_annotations(path, report=report))
        return ReferenceFile(path, {"emotion": _emotion_names(path, {clip.name: clip.label for clip in annotated}, aliases)})
    if extension(path) == ".json":
        return _read_reference_json(path)
    if extension(path) != ".csv":
        raise UserError(f"{path}: unknown reference format. Expected .csv, .txt (annotations) or .json (captions, words).")
    clips = _require_valid(lambda report: read_clip_table(path, None, report))
    header = list(clips[0].columns)
    require_column(path, header, [*DESCRIPTION_COLUMNS, *LABEL_COLUMNS, "openset"])
    texts = {column: {clip.name: clip.columns[column] for clip in clips if clip.columns[column]} for column in header}
    labels = next((texts[column] for column in LABEL_COLUMNS if column in header), None)
    descriptions = next((texts[column] for column in DESCRIPTION_COLUMNS if column in header), None)
    references = {} if descriptions is None else {"": descriptions, **dict.fromkeys(CAPTION_FIELDS, descriptions)}
    if labels is not None:
        references["emotion"] = _emotion_names(path, labels, aliases)
    is_dfew = labels is not None and labels != references["emotion"]
    openset = read_openset(path, "--truth") if "openset" in header else None
    return ReferenceFile(path, references, openset, DFEW_DIGITS * is_dfew, any(column in header for column in EMER_COLUMNS))


def _read_coco_results(path: str) -> list[Prediction]:
    table = read_json(path, lone_surrogates_allowed=True)
    if not isinstance(table, list):
        raise UserError(f"{path}: expected a JSON list of captions ({RESULTS_FORMAT})")
    return _image_predictions(path, ((f"entry {number}", entry) for number, entry in enumerate(table, 1)), [])


def _image_predictions(path: str, entries: Iterable[tuple[str, Any]], problems: list[Problem]) -> list[Prediction]:
    """Return one caption per image.

    Args:
        path: the file, for messages.
        entries: (position in the file as shown in messages, entry).
        problems: problems of the file that were detected before; they are reported together with those of the entries.
    """
    positions: dict[str, str] = {}
    predictions = []
    for position, entry in entries:
        try:
            prediction = parse_caption(entry)
            if (first := positions.setdefault(prediction.name, position)) != position:
                raise ValueError(f"{first} already has a caption for the image '{prediction.name}'. Remove one of the two.")
            predictions.append(prediction)
        except ValueError as error:
            problems.append(Problem("list", f"{path}, {position}: {error}"))
    raise_all(problems)
    if not predictions:
        raise UserError(f"{path}: the file contains no predictions")
    return predictions


def _require_valid(read: Callable[[Report], list[Clip]]) -> list[Clip]:
    """Return the rows of a file, all of which must be valid.

    Raises:
        UserError: If the file has problems. The message lists all of them.
    """
    problems: list[Problem] = []
    try:
        clips = read(problems.append)
    except UserError:
        raise_all(problems)
        raise
    raise_all(problems)
    return clips


def _emotion_names(path: str, labels: dict[str, str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return the labels, with DFEW's numbers replaced by the emotions that they encode, unless they are aliases of others.

    Raises:
        UserError: If the labels are other numbers.
    """
    dfew = DATASET_LABELS["dfew"]
    distinct = set(labels.values()) - {""}
    if distinct and all(label in dfew and aliases.get(label, dfew[label]) == dfew[label] for label in distinct):
        return {name: dfew.get(label, "") for name, label in labels.items()}
    if numbers := sorted(label for label in distinct if label.lstrip("-").isdecimal() and label not in aliases):
        hint = "Annotation files of EMER contain 0 instead of an emotion; use its tables (.csv) or captions (.json)"
        text = f"{path}: expected emotion names or DFEW's numbers 1 to 7 as labels, got {abbreviated(numbers)}."
        raise UserError(f"{text} Codes of other datasets need --aliases, such as --aliases ravdess. {hint}.")
    return labels


def _read_reference_json(path: str) -> ReferenceFile:
    """Read captions (one object per sample, or several captions per image) or words (one list per sample)."""
    table: Any = read_json(path, lone_surrogates_allowed=True)
    if (isinstance(table, dict) and "annotations" in table) or (isinstance(table, list) and table):
        captions = {image.name: list(image.captions) for image in read_captioned_images(path) if image.captions}
        listed = table.get("images") if isinstance(table, dict) else None
        # read_captioned_images has already validated the entries.
        images = listed if isinstance(listed, list) else ()
        ids = {str(image["id"]): splitext(image["file_name"])[0] for image in images}
        return ReferenceFile(path, {CAPTION: captions}, ids=ids)
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path}: expected one JSON object keyed by sample name, with captions or lists of words")
    if all(isinstance(words, list) for words in table.values()):
        return ReferenceFile(path, openset=read_openset(path, "--truth"))
    references: dict[str, dict[str, str]] = {task: _captions(table, fields) for task, fields in CAPTION_FIELDS.items()}
    references[""] = references["reason_v2"]
    if not references[""]:
        raise UserError(f"{path}: expected a caption in 'smp_reason_caption' or 'caption', but no sample has one")
    return ReferenceFile(path, references)


def _captions(table: dict[str, Any], fields: Sequence[str]) -> dict[str, str]:
    """Return the first caption in these fields that is non-empty text, for each sample that has one."""
    captions = {}
    for name, entry in table.items():
        candidates = [entry.get(field) for field in fields] if isinstance(entry, dict) else []
        if texts := [caption for caption in candidates if isinstance(caption, str) and caption.strip()]:
            captions[encodable(name)] = encodable(texts[0])
    return captions

"""Blinded rating by people: sheets of descriptions without model names, the answer key that maps rows to models, filled sheets.

A sheet is a CSV with one row per description in random order; ``item`` does not reveal the model or the sample. Cells that a
spreadsheet would run as formulas begin with an apostrophe.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from emollama.data.annotations import read_json
from emollama.data.csv_files import read_csv, require_column, restore_formula, write_csv
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps
from emollama.evaluation.judges.judge import Verdict
from emollama.evaluation.matching import EMPTY, Matched
from emollama.evaluation.metrics import MetricInput, metric, metric_value
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.references import task_name
from emollama.evaluation.scoring import TaskScores
from emollama.listing import abbreviated, listing
from emollama.paths import atomic_write, require_file

SCALES = ("clue_overlap", "label_overlap")  # metrics
TOP = 10  # maximum of both scales
TEXTS = ("truth", "description")
COLUMNS = ("item", *TEXTS, *SCALES, "comment")
NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Item:
    """The description of one sample by one model."""

    model: str
    name: str


@dataclass(frozen=True)
class Key:
    """The model and the sample behind each row of the sheets.

    Attributes:
        task: the task of the predictions.
        seed: seed of the selection of samples and of all orders.
        models: prediction files, in the order of tables.
        items: row -> model and sample.
        digests: row -> digests of its texts, reference and description.
        empty: descriptions without words, which score 0 and are not rated.
    """

    task: str
    seed: int
    models: list[str]
    items: dict[str, Item]
    digests: dict[str, list[str]]
    empty: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Ratings:
    """The ratings of one rater: scale -> row -> rating. Rows without a rating are absent."""

    rater: str
    points: dict[str, dict[str, float]]


def write_sheets(
    output: Path, task: str, files: Mapping[str, Matched], *, num_samples: int | None, raters: int, seed: int | None
) -> tuple[Key, list[Path]]:
    """Write one sheet per rater, and the answer key.

    Args:
        output: path of the sheet; with several raters, ``_rater1`` and so on is inserted before the extension.
        task: the task of the predictions.
        files: prediction file -> its predictions.
        num_samples: number of samples to select at random; None for all.
        raters: number of sheets, each in a different order.
        seed: seed of the selection and of the orders; None for a random one.

    Returns:
        The answer key, and the files that were written, the file of the answer key last.

    Raises:
        UserError: If there are fewer samples than ``num_samples``, or one of the files exists.
    """
    # A rater who knows the seed can compute which row belongs to which model, so the default seed is unpredictable.
    seed = secrets.randbelow(2**32) if seed is None else seed
    rng = np.random.default_rng(seed)
    predictions = _selected_predictions(files, num_samples, rng)
    empty = [item for item, prediction in predictions.items() if prediction.text.strip() in EMPTY]
    rated = [item for item, prediction in predictions.items() if prediction.text.strip() not in EMPTY]
    shuffled = [rated[index] for index in rng.permutation(len(rated))]
    items = {f"i{number:0{len(str(len(rated)))}}": item for number, item in enumerate(shuffled, 1)}
    rows = [(name, predictions[item]) for name, item in items.items()]
    digests = {name: [_digest(str(prediction.reference_text)), _digest(prediction.text)] for name, prediction in rows}
    key = Key(task, seed, [*files], items, digests, empty)
    sheets = [output.with_name(f"{output.stem}_rater{number}{output.suffix}") for number in range(1, raters + 1)]
    paths = [*(sheets if raters > 1 else [output]), output.with_suffix(".key.json")]
    if existing := [str(path) for path in paths if path.exists()]:
        raise UserError(f"--output: {', '.join(existing)} exists and may contain ratings. Choose another file name.")
    with atomic_write(paths[-1]) as file:
        json.dump(asdict(key), file, indent=1, ensure_ascii=False)
    for path in paths[:-1]:
        _write_sheet(path, [rows[index] for index in rng.permutation(len(rows))])
    return key, paths


def _selected_predictions(
    files: Mapping[str, Matched], num_samples: int | None, rng: np.random.Generator
) -> dict[Item, Prediction]:
    """Select samples at random, and return every file's predictions for them."""
    predictions = {
        Item(file, prediction.name): prediction for file, matched in files.items() for prediction in matched.predictions
    }
    names = sorted({item.name for item, prediction in predictions.items() if prediction.reference is not None})
    if num_samples is not None:
        if not 1 <= num_samples <= len(names):
            raise UserError(
                f"--clips: expected a number from 1 to {len(names)} (the samples with a description), got {num_samples}"
            )
        names = [names[index] for index in rng.choice(len(names), num_samples, replace=False)]
    selected = set(names)
    return {item: prediction for item, prediction in predictions.items() if item.name in selected}


def _digest(text: str) -> str:
    """Return a digest of a text that survives a spreadsheet: it ignores the apostrophe, line endings and surrounding space."""
    text = text.strip()
    while (restored := restore_formula(text).strip()) != text:
        text = restored
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return hashlib.sha256(text.encode()).hexdigest()


def _write_sheet(path: Path, rows: Sequence[tuple[str, Prediction]]) -> None:
    texts = ([name, str(prediction.reference_text), prediction.text, "", "", ""] for name, prediction in rows)
    write_csv(path, [COLUMNS, *texts], byte_order_mark=True)


def read_key(path: str) -> Key:
    """Read the answer key of rating sheets.

    Raises:
        UserError: If the file does not exist or is not an answer key.
    """
    content = read_json(require_file(path, "--key"))
    try:
        items = {name: Item(**item) for name, item in content["items"].items()}
        empty = [Item(**item) for item in content["empty"]]
        digests = {name: list(content["digests"][name]) for name in items}
        return Key(content["task"], content["seed"], list(content["models"]), items, digests, empty)
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: not the answer key of a rating sheet. Pass the .key.json that was written with the sheet."
        ) from None


def read_ratings(path: str, key: Key) -> Ratings:
    """Read a filled sheet.

    Raises:
        UserError: If rows do not belong to the key, or are missing, changed or repeated, or cells are not ratings. The message
            lists all of them with their lines.
    """
    problems: list[Problem] = []
    header, rows = read_csv(path, "--read", problems.append)
    for column in ("item", *TEXTS, *SCALES):
        require_column(path, header, [column])
    faults = [problem.text for problem in problems]
    points: dict[str, dict[str, float]] = {scale: {} for scale in SCALES}
    lines: dict[str, int] = {}
    for line, row in rows:
        name = row["item"]
        if name not in key.items:
            faults.append(f"{path}, line {line}: the answer key has no item '{name}'. Restore the cell.")
        elif lines.setdefault(name, line) != line:
            faults.append(f"{path}, line {line}: line {lines[name]} already has the item '{name}'. Remove one of the two.")
        for column, digest in zip(TEXTS, key.digests.get(name, ()), strict=False):
            if _digest(row[column]) != digest:
                faults.append(f"{path}, line {line}, item '{name}': {column} was changed. Restore the original text.")
        for scale in SCALES:
            try:
                if row[scale] and name in key.items:
                    points[scale][name] = _parse_rating(row[scale])
            except ValueError as error:
                faults.append(f"{path}, line {line}, item '{name}': {scale}: {error}")
    if missing := [name for name in key.items if name not in lines]:
        faults.append(f"{path}: the sheet lacks {listing(missing, 'row')}. Restore them; leave the cells of unrated rows empty.")
    if faults:
        raise UserError(abbreviated(faults, "\n"))
    return Ratings(path, points)


def _parse_rating(cell: str) -> float:
    if not NUMBER.fullmatch(cell) or float(cell) > TOP:
        raise ValueError(f"expected a number from 0 to {TOP} (7, or 7.5 with a decimal point), got '{cell}'")
    return float(cell)


def rated_scores(key: Key, ratings: Sequence[Ratings]) -> dict[str, TaskScores]:
    """Return the scores of each model in the form of a judge's scores: the mean rating of each description over its raters."""
    scores = {}
    for model in key.models:
        rated = {name: item.name for name, item in key.items.items() if item.model == model}
        empty = [item.name for item in key.empty if item.model == model]
        names = (*rated.values(), *empty)
        verdicts = {scale: (*_mean_ratings(ratings, scale, rated), *(Verdict(0.0) for _ in empty)) for scale in SCALES}
        no_words = ((),) * len(names)
        inputs: dict[str, MetricInput] = {
            "clue_overlaps": ClueOverlaps(names, verdicts["clue_overlap"]),
            "label_overlaps": LabelOverlaps(names, verdicts["label_overlap"], no_words, no_words),
        }
        predictions = [Prediction(name, key.task, "") for name in names]
        values = {scale: metric_value(scale, inputs[metric(scale).metric_input]) for scale in SCALES}
        scores[model] = TaskScores(predictions, values, inputs, {"name": f"{len(ratings)} raters"})
    return scores


def _mean_ratings(ratings: Sequence[Ratings], scale: str, rows: Iterable[str]) -> list[Verdict]:
    """Return the mean rating of each row on a scale."""
    points = [[rater.points[scale][row] for rater in ratings if row in rater.points[scale]] for row in rows]
    return [Verdict(sum(own) / len(own)) if own else Verdict(None, "nobody rated it") for own in points]


def read_judge_ratings(path: str, key: Key) -> Ratings:
    """Read a judge's scores of the items from the ``scores.json`` of ``emollama score``.

    Raises:
        UserError: If the file does not exist, or has no scores of the predictions in the key's files.
    """
    content = read_json(require_file(path, "--scores"))
    try:
        files = content["tasks"][key.task]["files"]
        by_item = {(model, row["name"]): row for model, record in files.items() for row in record.get("clip_scores", [])}
        judge = content["judge"]["name"]
    except (TypeError, KeyError, AttributeError):
        remedy = "Write them with emollama score --judge ... --output FOLDER"
        raise UserError(f"{path}: no scores of a judge for {task_name(key.task)}. {remedy}") from None
    points: dict[str, dict[str, float]] = {scale: {} for scale in SCALES}
    for name, item in key.items.items():
        for scale in SCALES:
            if (score := by_item.get((item.model, item.name), {}).get(scale)) is not None:
                points[scale][name] = score
    if not any(points.values()):
        remedy = "Run emollama score with the paths that were used for the sheets."
        raise UserError(f"{path}: no scores of {', '.join(key.models)}. {remedy}")
    return Ratings(f"judge {judge}", points)

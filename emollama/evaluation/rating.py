"""Blinded rating by people: sheets of descriptions whose model is not told, the key that tells it, filled sheets read back.

A sheet is a CSV with a row a description, in an order of its own; ``item`` says nothing about model or clip. Cells that a
spreadsheet would run as formulas have an apostrophe in front.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emollama.data.annotations import column_of, read_json, read_rows
from emollama.data.problems import Problem
from emollama.errors import UserError
from emollama.evaluation.answers import Answer
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps
from emollama.evaluation.judges.judge import Verdict
from emollama.evaluation.matching import EMPTY, Matched, task_name
from emollama.evaluation.metrics import metric
from emollama.evaluation.records import FORMULA, harmless
from emollama.evaluation.scoring import TaskScores
from emollama.listing import abbreviated, listing
from emollama.paths import atomic_write, require_file

SCALES = {"clue_overlap": ClueOverlaps, "label_overlap": LabelOverlaps}
TOP = 10  # of both scales
TEXTS = ("truth", "description")
COLUMNS = ("item", *TEXTS, *SCALES, "comment")
NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Item:
    """One model's description of one clip."""

    model: str
    name: str


@dataclass(frozen=True)
class Key:
    """Which row is whose.

    Attributes:
        task: that was answered.
        seed: of the choice of clips and of all orders.
        models: files of answers, in the order of tables.
        items: row -> whose.
        digests: row -> those of its texts, truth and description.
        empty: descriptions without words, which score 0 without being rated.
    """

    task: str
    seed: int
    models: list[str]
    items: dict[str, Item]
    digests: dict[str, list[str]]
    empty: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Ratings:
    """What one rater gave: scale -> row -> points; rows that were left empty are absent."""

    rater: str
    points: dict[str, dict[str, float]]


def write_sheets(
    output: Path, task: str, files: Mapping[str, Matched], *, clips: int | None, raters: int, seed: int | None
) -> tuple[Key, list[Path]]:
    """Write a sheet a rater, and beside them the key.

    Args:
        output: the sheet; with several raters ``_rater1`` and so on is put before its ending.
        task: that was answered.
        files: file of answers -> its answers.
        clips: how many of the clips to draw; None for all.
        raters: how many sheets, each in another order.
        seed: None for one that nobody can know.

    Returns:
        The key, and the files written, the key's last.

    Raises:
        UserError: fewer clips than asked for, or one of the files is there already.
    """
    seed = secrets.randbelow(2**32) if seed is None else seed
    rng = np.random.default_rng(seed)
    answers = _drawn(files, clips, rng)
    empty = [item for item, answer in answers.items() if answer.prediction.strip() in EMPTY]
    told = [item for item, answer in answers.items() if answer.prediction.strip() not in EMPTY]
    shuffled = [told[place] for place in rng.permutation(len(told))]
    items = {f"i{number:0{len(str(len(told)))}}": item for number, item in enumerate(shuffled, 1)}
    rows = [(name, answers[item]) for name, item in items.items()]
    digests = {name: [_digest(str(answer.truth)), _digest(answer.prediction)] for name, answer in rows}
    key = Key(task, seed, [*files], items, digests, empty)
    sheets = [output.with_name(f"{output.stem}_rater{number}{output.suffix}") for number in range(1, raters + 1)]
    paths = [*(sheets if raters > 1 else [output]), output.with_suffix(".key.json")]
    if there := [str(path) for path in paths if path.exists()]:
        raise UserError(f"--output: {', '.join(there)} is there already, and may be filled in. Name another file.")
    with atomic_write(paths[-1]) as file:
        json.dump(asdict(key), file, indent=1, ensure_ascii=False)
    for path in paths[:-1]:
        _write_sheet(path, [rows[place] for place in rng.permutation(len(rows))])
    return key, paths


def _drawn(files: Mapping[str, Matched], clips: int | None, rng: np.random.Generator) -> dict[Item, Answer]:
    """Every file's answers to the drawn clips."""
    names = sorted({answer.name for found in files.values() for answer in found.answers if answer.reference is not None})
    if clips is not None:
        if not 1 <= clips <= len(names):
            raise UserError(f"--clips: {clips}; there are {len(names)} clips with a description")
        names = [names[place] for place in rng.choice(len(names), clips, replace=False)]
    chosen = set(names)
    return {Item(file, a.name): a for file, found in files.items() for a in found.answers if a.name in chosen}


def _digest(text: str) -> str:
    """Of a text, whether or not an apostrophe guards it, its lines end in another way, or space is lost at its ends."""
    text = text.strip()
    if text.startswith("'") and text[1:].startswith(FORMULA):
        text = text[1:].strip()
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return hashlib.sha256(text.encode()).hexdigest()


def _write_sheet(path: Path, rows: Sequence[tuple[str, Answer]]) -> None:
    with atomic_write(path) as file:
        file.write("\ufeff")  # by which spreadsheets know UTF-8
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, answer in rows:
            writer.writerow([name, harmless(str(answer.truth)), harmless(answer.prediction), "", "", ""])


def read_key(path: str) -> Key:
    """Read a key.

    Raises:
        UserError: no such file, or no key.
    """
    content = read_json(require_file(path, "--key"))
    try:
        items = {name: Item(**item) for name, item in content["items"].items()}
        empty = [Item(**item) for item in content["empty"]]
        digests = {name: list(content["digests"][name]) for name in items}
        return Key(content["task"], content["seed"], list(content["models"]), items, digests, empty)
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: not the key of a rating sheet. It is the .key.json that was written with the sheet.") from None


def read_ratings(path: str, key: Key) -> Ratings:
    """Read a filled sheet.

    Raises:
        UserError: rows that are not the key's, lacking, changed or repeated ones, and cells that hold no points, all with their
            lines.
    """
    problems: list[Problem] = []
    header, rows = read_rows(path, "--read", problems.append)
    for column in ("item", *TEXTS, *SCALES):
        column_of(path, header, [column])
    faults = [problem.text for problem in problems]
    points: dict[str, dict[str, float]] = {scale: {} for scale in SCALES}
    lines: dict[str, int] = {}
    for line, row in rows:
        name = row["item"]
        if name not in key.items:
            faults.append(f"{path}, line {line}: the item '{name}' is none of this key's. Restore the cell.")
        elif lines.setdefault(name, line) != line:
            faults.append(f"{path}, line {line}: the item '{name}' stands on line {lines[name]} already. Remove one of the two.")
        for column, digest in zip(TEXTS, key.digests.get(name, ()), strict=False):
            if _digest(row[column]) != digest:
                faults.append(f"{path}, line {line}, item '{name}': {column} is not the text that was written. Restore the cell.")
        for scale in SCALES:
            try:
                if row[scale] and name in key.items:
                    points[scale][name] = _points(row[scale])
            except ValueError as error:
                faults.append(f"{path}, line {line}, item '{name}': {scale}: {error}")
    if lacking := [name for name in key.items if name not in lines]:
        faults.append(f"{path}: rows were removed, {listing(lacking)}. Restore them; a row that is not rated stays empty.")
    if faults:
        raise UserError(abbreviated(faults, "\n"))
    return Ratings(path, points)


def _points(cell: str) -> float:
    if not NUMBER.fullmatch(cell) or float(cell) > TOP:
        raise ValueError(f"'{cell}' is no number from 0 to {TOP} (7, or 7.5 with a point)")
    return float(cell)


def scores_of(key: Key, ratings: Sequence[Ratings]) -> dict[str, TaskScores]:
    """model -> scores as a judge's would be: each description's mean over the raters who rated it."""
    scores = {}
    for model in key.models:
        rated = {name: item.name for name, item in key.items.items() if item.model == model}
        unread = [item.name for item in key.empty if item.model == model]
        evidence: dict[type, Any] = {}
        for scale, kind in SCALES.items():
            given = [[one.points[scale][name] for one in ratings if name in one.points[scale]] for name in rated]
            verdicts = [Verdict(sum(each) / len(each)) if each else Verdict(None, "nobody rated it") for each in given]
            names, verdicts = [*rated.values(), *unread], [*verdicts, *(Verdict(0.0) for _ in unread)]
            nothing = ((),) * len(names)
            words = (nothing, nothing) if kind is LabelOverlaps else ()
            evidence[kind] = kind(tuple(names), tuple(verdicts), *words)
        answers = [Answer(name, key.task, "") for name in evidence[ClueOverlaps].names]
        values = {scale: metric(scale).value(evidence[kind]) for scale, kind in SCALES.items()}
        scores[model] = TaskScores(answers, values, evidence, {"name": f"{len(ratings)} raters"})
    return scores


def judges_points(path: str, key: Key) -> Ratings:
    """A judge's points on the items, of the ``scores.json`` of ``emollama score``.

    Raises:
        UserError: no such file, or no score of these files' answers in it.
    """
    content = read_json(require_file(path, "--scores"))
    try:
        files = content["tasks"][key.task]["files"]
        given = {(model, row["name"]): row for model, record in files.items() for row in record.get("clip_scores", [])}
        judge = content["judge"]["name"]
    except (TypeError, KeyError, AttributeError):
        told = f"no scores of a judge for {task_name(key.task)}. It is written by emollama score --judge ... --output FOLDER"
        raise UserError(f"{path}: {told}") from None
    points: dict[str, dict[str, float]] = {scale: {} for scale in SCALES}
    for name, item in key.items.items():
        for scale in SCALES:
            if (found := given.get((item.model, item.name), {}).get(scale)) is not None:
                points[scale][name] = found
    if not any(points.values()):
        raise UserError(f"{path}: no score of {', '.join(key.models)}. Score the files under the names by which they were rated.")
    return Ratings(f"judge {judge}", points)

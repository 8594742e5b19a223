"""``emollama rate``: blinded sheets for people who rate descriptions, and filled sheets read back.

Writing: a sheet (CSV) with a row a description, shuffled, without its model; clue_overlap and label_overlap are rated from 0 to
10, and what cannot be rated stays empty. The key beside it says which row is whose: keep it from the raters. Reading: the same
table as ``emollama score`` makes, and how far the raters agree.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emollama.commands.arguments import add_answers, add_resampling
from emollama.logs.console import aligned, write

if TYPE_CHECKING:
    from emollama.evaluation.agreement import Agreement
    from emollama.evaluation.rating import Key, Ratings

HELP = "write blinded rating sheets for human raters; read filled sheets and report their agreement"
EXAMPLE = "emollama rate --predictions a.jsonl b.jsonl --truth truth.csv --output sheet.csv"
DOCS = "docs/evaluation.md#people-as-judges"
SCALES = """Points from 0 to 10. clue_overlap: how much of the truth's evidence for the emotion (face, voice, words, body) the
description shares. label_overlap: how far the emotions that both name agree. What cannot be rated stays empty.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Writing: ``--predictions`` and what belongs to it; reading: ``--read`` and what belongs to it."""
    add_answers(parser, required=False)
    parser.add_argument("--output", metavar="CSV", help="the sheet to write; the key is written beside it")
    parser.add_argument("--clips", type=int, metavar="N", help="draw N clips (default: all)")
    parser.add_argument("--raters", type=int, default=1, metavar="N", help="write N sheets, each in another order (default: 1)")
    parser.add_argument("--read", nargs="+", metavar="CSV", help="filled sheets, one a rater")
    parser.add_argument("--key", metavar="JSON", help="the key of the sheets that are read")
    parser.add_argument("--scores", metavar="JSON", help="scores.json of emollama score: a judge whose agreement is told too")
    add_resampling(parser, "of clips and orders (default: one that nobody can know, kept in the key); of the draws (default: 0)")
    parser.set_defaults(seed=None)


def run(arguments: argparse.Namespace) -> None:
    """Write sheets, or read them."""
    from emollama.errors import UserError

    if bool(arguments.predictions) == bool(arguments.read):
        raise UserError("rate: either --predictions FILE ... to write a sheet, or --read CSV ... to read filled ones")
    needed, other = ("output", ("key", "scores")) if arguments.predictions else ("key", ("output", "truth", "task", "clips"))
    given = "predictions" if arguments.predictions else "read"
    if not getattr(arguments, needed):
        raise UserError(f"--{given} needs --{needed}")
    if strange := [f"--{name}" for name in other if getattr(arguments, name)]:
        raise UserError(f"{', '.join(strange)} does not go with --{given}")
    (_write if arguments.predictions else _read)(arguments)


def _write(arguments: argparse.Namespace) -> None:
    from emollama.errors import UserError
    from emollama.evaluation.matching import match
    from emollama.evaluation.rating import write_sheets
    from emollama.evaluation.scoring import DESCRIBING
    from emollama.paths import require_writable

    output = Path(arguments.output)
    if output.suffix != ".csv":
        raise UserError(f"--output: '{output}' does not end in .csv")
    if arguments.raters < 1:
        raise UserError(f"--raters: {arguments.raters}; at least 1 rates")
    if arguments.seed is not None and arguments.seed < 0:
        raise UserError(f"--seed: {arguments.seed}; it must be at least 0")
    require_writable(output.parent, "--output")
    tasks = match(arguments.predictions, arguments.truth, arguments.task).tasks
    described = [task for task in tasks if task in DESCRIBING]
    if len(described) != 1:
        found = ", ".join(described) if described else "no task that describes"
        raise UserError(f"rate: one task is rated at a time, and here is {found}. Choose with --task, or give descriptions.")
    task = described[0]
    key, paths = write_sheets(output, task, tasks[task], clips=arguments.clips, raters=arguments.raters, seed=arguments.seed)
    write(_report(key, paths))


def _report(key: Key, paths: list[Path]) -> str:
    empty = f"; {len(key.empty)} descriptions are empty and score 0 without being rated" if key.empty else ""
    lines = [f"{len(key.items)} descriptions of {len(key.models)} models to rate{empty}"]
    lines += [f"sheet: {path}" for path in paths[:-1]]
    lines += [f"key, to be kept from the raters: {paths[-1]}", SCALES]
    return "\n".join(lines)


def _read(arguments: argparse.Namespace) -> None:
    from emollama.errors import UserError
    from emollama.evaluation import rating, tables
    from emollama.evaluation.agreement import agreements
    from emollama.evaluation.records import comparison_record
    from emollama.evaluation.statistics import Resampling

    if len({Path(path).resolve() for path in arguments.read}) < len(arguments.read):
        raise UserError("--read: a sheet is given twice")
    resampling = Resampling(arguments.resamples, arguments.seed or 0)
    key = rating.read_key(arguments.key)
    ratings = [rating.read_ratings(path, key) for path in arguments.read]
    if not any(points for one in ratings for points in one.points.values()):
        raise UserError(f"--read: no cell of {', '.join(arguments.read)} is filled in")
    judge = [rating.read_judge_ratings(arguments.scores, key)] if arguments.scores else []
    short = tables.short_names([*key.models, *arguments.read])
    ratings = [replace(one, rater=short[one.rater]) for one in ratings]
    record = comparison_record(rating.rated_scores(key, ratings), resampling)
    lines = [*told, ""] if (told := tables.path_lines(short)) else []
    lines += tables.task_text(key.task, {short[model]: found for model, found in record.items()})
    lines += [*_unfilled(key, ratings), ""]
    if pairs := agreements([*ratings, *judge]):
        lines += ["Agreement: quadratic-weighted kappa of whole points, Spearman's rank correlation"]
        lines += aligned([["", "scale", "items", "kappa", "Spearman"], *map(_row, pairs)])
    write("\n".join(lines) + "\n")


def _unfilled(key: Key, ratings: list[Ratings]) -> list[str]:
    lines = []
    for one in ratings:
        empty = [f"{scale} {len(key.items) - len(points)}" for scale, points in one.points.items()]
        lines.append(f"{one.rater}: of {len(key.items)} items not rated: {', '.join(empty)}")
    return lines


def _row(pair: Agreement) -> list[str]:
    figures = ["-" if figure is None else f"{figure:.3f}" for figure in (pair.kappa, pair.spearman)]
    return [" / ".join(pair.raters), pair.scale, str(pair.items), *figures]

"""Write blinded rating sheets for human raters, or read filled sheets and print scores and agreement.

With --predictions, the command writes a sheet (CSV) with one description per row, in random order and without the name of the
model. Raters fill the columns clue_overlap and label_overlap with points from 0 to 10, and leave a cell empty if they cannot rate
it. The answer key (JSON), written next to the sheet, maps rows to models: do not show it to the raters.

With --read, the command prints the table of ``emollama score`` for the filled sheets, and how far the raters agree.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emollama.commands.arguments import add_predictions, add_resampling
from emollama.logs.console import aligned, write

if TYPE_CHECKING:
    from emollama.evaluation.agreement import Agreement
    from emollama.evaluation.rating import Key, Ratings

HELP = "write blinded rating sheets for human raters, or read filled sheets"
EXAMPLE = "emollama rate --predictions a.jsonl b.jsonl --truth truth.csv --output sheet.csv"
DOCS = "docs/evaluation.md#people-as-judges"
SCALES = """Points are from 0 to 10. clue_overlap: how much of the reference's evidence for the emotion (face, voice, words, body)
the description contains. label_overlap: how far the emotions in the two texts agree. Cells that cannot be rated stay empty.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of writing (``--predictions`` and others) and of reading (``--read`` and others)."""
    add_predictions(parser, required=False)
    parser.add_argument("--output", metavar="CSV", help="the sheet to write; the answer key is written next to it")
    parser.add_argument("--clips", type=int, metavar="N", help="number of randomly selected samples (default: all)")
    parser.add_argument("--raters", type=int, default=1, metavar="N", help="number of sheets, each in its own order (default: 1)")
    parser.add_argument("--read", nargs="+", metavar="CSV", help="filled sheets, one per rater")
    parser.add_argument("--key", metavar="JSON", help="the answer key of the filled sheets")
    scores = "scores.json of emollama score, whose judge is compared with the raters"
    parser.add_argument("--scores", metavar="JSON", help=scores)
    seed = "seed of order and selection when writing (default: random, stored in the key), and of the bootstrap (default: 0)"
    add_resampling(parser, seed)
    parser.set_defaults(seed=None)


def run(arguments: argparse.Namespace) -> None:
    """Write sheets, or read filled ones."""
    from emollama.errors import UserError

    if bool(arguments.predictions) == bool(arguments.read):
        raise UserError("rate requires either --predictions FILE ... to write sheets, or --read CSV ... to read filled sheets.")
    required, other = ("output", ("key", "scores")) if arguments.predictions else ("key", ("output", "truth", "task", "clips"))
    mode = "predictions" if arguments.predictions else "read"
    if not getattr(arguments, required):
        raise UserError(f"--{mode} requires --{required}.")
    if unsuitable := [f"--{name}" for name in other if getattr(arguments, name)]:
        raise UserError(f"{', '.join(unsuitable)} cannot be combined with --{mode}.")
    (_write if arguments.predictions else _read)(arguments)


def _write(arguments: argparse.Namespace) -> None:
    from emollama.errors import UserError
    from emollama.evaluation.matching import match
    from emollama.evaluation.predictions import DESCRIPTION_TASKS
    from emollama.evaluation.rating import write_sheets
    from emollama.paths import require_writable

    output = Path(arguments.output)
    if output.suffix != ".csv":
        raise UserError(f"--output: '{output}' must end in .csv.")
    if arguments.raters < 1:
        raise UserError(f"--raters must be at least 1, not {arguments.raters}.")
    if arguments.seed is not None and arguments.seed < 0:
        raise UserError(f"--seed must be at least 0, not {arguments.seed}.")
    require_writable(output.parent, "--output")
    tasks = match(arguments.predictions, arguments.truth, arguments.task).tasks
    described = [task for task in tasks if task in DESCRIPTION_TASKS]
    if len(described) != 1:
        problem = f"several tasks have descriptions: {', '.join(described)}" if described else "no task has descriptions"
        raise UserError(
            f"rate: {problem}, but a sheet contains one. Select a task with --task, or other files with --predictions."
        )
    task = described[0]
    key, paths = write_sheets(
        output, task, tasks[task], num_samples=arguments.clips, raters=arguments.raters, seed=arguments.seed
    )
    write(_report(key, paths))


def _report(key: Key, paths: list[Path]) -> str:
    empty = f"; {len(key.empty)} empty descriptions score 0 without a rating" if key.empty else ""
    lines = [f"{len(key.items)} descriptions of {len(key.models)} models to rate{empty}"]
    lines += [f"sheet: {path}" for path in paths[:-1]]
    lines += [f"answer key (do not show it to the raters): {paths[-1]}", SCALES]
    return "\n".join(lines)


def _read(arguments: argparse.Namespace) -> None:
    from emollama.errors import UserError
    from emollama.evaluation import rating
    from emollama.evaluation.agreement import agreements
    from emollama.evaluation.records import comparison_record
    from emollama.evaluation.statistics import Resampling
    from emollama.reporting import score_tables

    if len({Path(path).resolve() for path in arguments.read}) < len(arguments.read):
        raise UserError("--read: a sheet occurs twice. Specify each sheet once.")
    resampling = Resampling(arguments.resamples, arguments.seed or 0)
    key = rating.read_key(arguments.key)
    ratings = [rating.read_ratings(path, key) for path in arguments.read]
    if not any(points for rater in ratings for points in rater.points.values()):
        raise UserError(
            f"--read: {', '.join(arguments.read)} contains no points. Fill in the columns clue_overlap and label_overlap."
        )
    judge = [rating.read_judge_ratings(arguments.scores, key)] if arguments.scores else []
    short = score_tables.short_names([*key.models, *arguments.read])
    ratings = [replace(rater_ratings, rater=short[rater_ratings.rater]) for rater_ratings in ratings]
    record = comparison_record(rating.rated_scores(key, ratings), resampling)
    lines = [*path_lines, ""] if (path_lines := score_tables.path_lines(short)) else []
    lines += score_tables.task_text(key.task, {short[model]: scores for model, scores in record.items()})
    lines += [*_unfilled(key, ratings), ""]
    if pairs := agreements([*ratings, *judge]):
        lines += ["Agreement: quadratic-weighted kappa of rounded points, and Spearman's rank correlation"]
        lines += aligned([["", "scale", "items", "kappa", "Spearman"], *map(_row, pairs)])
    write("\n".join(lines) + "\n")


def _unfilled(key: Key, ratings: list[Ratings]) -> list[str]:
    lines = []
    for rater_ratings in ratings:
        empty = [f"{scale} {len(key.items) - len(points)}" for scale, points in rater_ratings.points.items()]
        lines.append(f"{rater_ratings.rater}: unrated of {len(key.items)} items: {', '.join(empty)}")
    return lines


def _row(pair: Agreement) -> list[str]:
    coefficients = ["-" if value is None else f"{value:.3f}" for value in (pair.kappa, pair.spearman)]
    return [" / ".join(pair.raters), pair.scale, str(pair.items), *coefficients]

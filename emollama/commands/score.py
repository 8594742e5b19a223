"""``emollama score``: files of answers of any model, scored side by side against what is true.

Prints each metric with its 95% interval (bootstrap over the clips), differences from the first file on the clips that both have
scores for, and what was odd about the answers. Answers are .jsonl files of a run, CSV tables (names,chi_reasons; name with
prediction, english, label or openset; image_id,caption), COCO's results (.json), or .npz submissions; truth is a table of EMER, a
table or list of labels, a table of words (openset), or captions (.json). An image_id is the image's number in COCO's captions, or
the name of its file without or with the ending.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emollama.commands.arguments import add_answers, add_judge, add_resampling, judge_block, pairs
from emollama.logs.console import write

if TYPE_CHECKING:
    from emollama.evaluation.matching import Matching
    from emollama.evaluation.scoring import Scoring, TaskScores
    from emollama.evaluation.statistics import Resampling

HELP = "score files of answers side by side, with intervals and paired differences"
EXAMPLE = "emollama score --predictions a.jsonl b.jsonl --truth truth.csv"
DOCS = "docs/evaluation.md#score-files-side-by-side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is scored, by which metrics and judge, and where the figures go."""
    add_answers(parser, required=True)
    add_judge(parser)
    everything = "metrics to compute (default: all that answers and truth allow); the first ones lead the table"
    parser.add_argument("--metrics", nargs="+", default=[], metavar="METRIC", help=everything)
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="labels that answers may have (default: those of the truth)")
    parser.add_argument("--aliases", nargs="+", default=[], metavar="WORD=LABEL", help="words that stand for a label: joy=happy")
    rule = "how a label is read out of an answer (default: search, a whole word)"
    parser.add_argument("--answer-rule", choices=("search", "exact", "last_word"), default="search", help=rule)
    several = "what an answer that names several labels is (default: invalid)"
    parser.add_argument("--several-hits", choices=("invalid", "first", "last"), default="invalid", help=several)
    synonyms = 'groups of synonyms for the ov metrics: JSON, [["happy", "glad"], ...], {"happy": ["glad"]} or {"glad": "happy"}'
    parser.add_argument("--synonyms", metavar="FILE", help=synonyms)
    parser.add_argument("--wheels", metavar="FOLDER", help="emotion wheels in MERTools' layout, for the ew metrics")
    parser.add_argument("--wheel-level", type=int, choices=(1, 2), default=1, help="level at which ew compares (default: 1)")
    words = "how captions are split into words: ptb needs Java (default: auto, ptb where Java is)"
    parser.add_argument("--caption-tokenizer", choices=("auto", "ptb", "treebank"), default="auto", help=words)
    parser.add_argument(
        "--output", metavar="FOLDER", help="write scores.json (everything) and scores.csv (a row a clip), new ones"
    )
    add_resampling(parser)


# Key of the scoring -> the option of this command that sets it.
OPTIONS = {
    "metrics": "--metrics",
    "labels": "--labels",
    "aliases": "--aliases",
    "answer_rule": "--answer-rule",
    "several_hits": "--several-hits",
    "judge": "--judge",
    "openset_path": "--truth",
    "synonyms_path": "--synonyms",
    "wheel_folder": "--wheels",
    "wheel_level": "--wheel-level",
    "caption_tokenizer": "--caption-tokenizer",
}


def run(arguments: argparse.Namespace) -> None:
    """Score, print, and write where asked; messages name options, not the keys of a configuration."""
    from emollama.evaluation.judges.judge import JudgeUnreachable
    from emollama.evaluation.matching import match
    from emollama.evaluation.records import write_records
    from emollama.evaluation.statistics import Resampling

    resampling = Resampling(arguments.resamples, arguments.seed)
    if arguments.output:
        _require_free(arguments.output)
    aliases = pairs(arguments.aliases, "--aliases", "WORD=LABEL")
    matching = match(arguments.predictions, arguments.truth, arguments.task, aliases)
    scoring = _scoring(arguments, matching, aliases)
    try:
        scores = _scores(scoring, matching)
    except JudgeUnreachable as error:
        raise JudgeUnreachable(f"{error} Then run the same command again to continue.") from None
    record = _record(arguments, matching, scoring, scores, resampling)
    write(_text(record, matching.truth.is_emer))
    if arguments.output:
        written = write_records(Path(arguments.output), record, scores)
        write(f"written: {', '.join(map(str, written))}\n")


def _require_free(output: str) -> None:
    """Check that the output can be written and replaces nothing, before anybody is asked anything."""
    from emollama.errors import UserError
    from emollama.evaluation.records import WRITTEN
    from emollama.paths import require_new_file, require_writable

    if Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"--output: '{output}' is a file. Name a folder.")
    require_writable(Path(output), "--output")
    for name in WRITTEN:
        require_new_file(str(Path(output) / name))


def _scoring(arguments: argparse.Namespace, matching: Matching, aliases: dict[str, str]) -> Scoring:
    from emollama.evaluation.matching import allowed_labels
    from emollama.evaluation.scoring import Scoring
    from emollama.registry import JUDGES, METRICS

    judge = judge_block(arguments.judge)
    for name in arguments.metrics:
        METRICS.require(name, OPTIONS["metrics"])
    if judge:
        JUDGES.configured(judge, OPTIONS["judge"])
    cfg = Scoring.Config(
        metrics=arguments.metrics,
        answer_rule=arguments.answer_rule,
        several_hits=arguments.several_hits,
        judge=judge or None,
        openset_path=matching.truth.openset_path,
        synonyms_path=arguments.synonyms,
        wheel_folder=arguments.wheels,
        wheel_level=arguments.wheel_level,
        caption_tokenizer=arguments.caption_tokenizer,
    )
    return Scoring(
        cfg,
        labels=allowed_labels(matching.truth, arguments.labels),
        aliases=aliases,
        tasks=dict.fromkeys(matching.tasks, ("reference", "loss")),
        key="",
        options=OPTIONS,
    )


def _scores(scoring: Scoring, matching: Matching) -> dict[str, dict[str, TaskScores]]:
    """task -> file -> its scores."""
    scores: dict[str, dict[str, TaskScores]] = {task: {} for task in matching.tasks}
    for file in matching.files:
        tasks = [task for task, files in matching.tasks.items() if file in files]
        found = scoring.score([answer for task in tasks for answer in matching.tasks[task][file].answers])
        for task in tasks:
            scores[task][file] = found[task]
    return scores


def _record(
    arguments: argparse.Namespace,
    matching: Matching,
    scoring: Scoring,
    scores: dict[str, dict[str, TaskScores]],
    resampling: Resampling,
) -> dict[str, Any]:
    from emollama.evaluation.records import task_record

    tasks = {task: {"files": task_record(found, matching.tasks[task], resampling)} for task, found in scores.items()}
    judged = any("judge" in record for task in tasks.values() for record in task["files"].values())
    return {
        "predictions": arguments.predictions,
        "truth": arguments.truth,
        "resamples": resampling.resamples,
        "seed": resampling.seed,
        "judge": {"name": scoring.judge.name, **scoring.judge.usage()} if scoring.judge and judged else None,
        "tasks": tasks,
    }


def _text(record: dict[str, Any], is_emer: bool) -> str:
    from emollama.evaluation import tables

    short = tables.short_names(record["predictions"])
    lines = [*told, ""] if (told := tables.path_lines(short)) else []
    for task, found in record["tasks"].items():
        files = {short[file]: one for file, one in found["files"].items()}
        lines += [*tables.task_text(task, files), *tables.counts(files), "", *tables.name_lists(files), ""]
    if record["judge"]:
        lines += [tables.judge_line(record["judge"]), ""]
        lines += [*tables.published(), ""] if is_emer else []
    return "\n".join(lines) + "\n"

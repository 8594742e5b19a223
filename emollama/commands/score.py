"""Score files of answers, of any model, against references.

The command prints each metric with its 95% confidence interval (bootstrap over samples), the differences of each file from the
first one on the samples that both have, and a summary of invalid and missing answers.

Answers are .jsonl files of a run or of Emotion-LLaMA-v2, CSV tables (with the columns names,chi_reasons, or image_id,caption, or
name and one of prediction, english, label and openset), COCO results (.json) or .npz submissions.

References are a table of EMER, a table or list of labels, a table of emotion words (openset), or captions (.json). The image_id
of a caption is the number of the image in a COCO file, or the name of the image file, with or without its extension.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emollama.commands.arguments import (
    add_imports,
    add_judge,
    add_predictions,
    add_resampling,
    import_modules,
    judge_block,
    pairs,
)
from emollama.data.label_map import DATASET_LABELS, SKIP, answer_aliases
from emollama.errors import UserError
from emollama.logs.console import write

if TYPE_CHECKING:
    from emollama.evaluation.matching import Matching
    from emollama.evaluation.scoring import Scoring, TaskScores
    from emollama.evaluation.statistics import Resampling

HELP = "score files of answers, with confidence intervals and paired differences"
EXAMPLE = "emollama score --predictions a.jsonl b.jsonl --truth truth.csv"
DOCS = "docs/evaluation.md#score-files-side-by-side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of answers, references, metrics, judge and output."""
    add_predictions(parser, required=True)
    add_judge(parser)
    metrics = "metrics to compute, in the order of the table (default: all that the answers and references allow)"
    parser.add_argument("--metrics", nargs="+", default=[], metavar="METRIC", help=metrics)
    add_imports(parser, "metrics, metric inputs or judges")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="allowed labels (default: the labels of the references)")
    aliases = f"other words for a label, for example joy=happy, or the labels of a dataset: {', '.join(DATASET_LABELS)}"
    parser.add_argument("--aliases", nargs="+", default=[], metavar="WORD=LABEL", help=aliases)
    mode = "part of the dataset to score in answers of Emotion-LLaMA-v2, such as test1 (default: all answers with references)"
    parser.add_argument("--mode", metavar="NAME", help=mode)
    rule = "how to read the label of an answer. search: a whole word (default). exact: the whole answer. last_word: the last word"
    parser.add_argument("--answer-rule", choices=("search", "exact", "last_word"), default="search", help=rule)
    several = "label of an answer that contains several labels (default: invalid)"
    parser.add_argument("--several-hits", choices=("invalid", "first", "last"), default="invalid", help=several)
    synonyms = 'JSON file of synonyms for the ov metrics: [["happy", "glad"], ...], {"happy": ["glad"]} or {"glad": "happy"}'
    parser.add_argument("--synonyms", metavar="FILE", help=f"{synonyms}; or openset-synonym.zip of MER2024-OV")
    parser.add_argument("--wheels", metavar="FOLDER", help="emotion wheels for the ew metrics, in the layout of MERTools")
    parser.add_argument("--wheel-level", type=int, choices=(1, 2), default=1, help="wheel level of the ew metrics (default: 1)")
    tokenizer = "tokenizer of captions. ptb requires Java. auto: ptb if Java is installed, otherwise treebank (default)"
    parser.add_argument("--caption-tokenizer", choices=("auto", "ptb", "treebank"), default="auto", help=tokenizer)
    output = "folder to write: scores.json (all values) and scores.csv (one row per sample); existing files are not overwritten"
    parser.add_argument("--output", metavar="FOLDER", help=output)
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
    """Score the answers, print the tables and write the files. Messages name options instead of configuration keys."""
    from emollama.evaluation.judges.judge import JudgeUnreachable
    from emollama.evaluation.matching import match
    from emollama.evaluation.records import write_records
    from emollama.evaluation.statistics import Resampling

    import_modules(arguments)
    resampling = Resampling(arguments.resamples, arguments.seed)
    if arguments.output:
        _require_free(arguments.output)
    aliases = _aliases(arguments.aliases)
    matching = match(arguments.predictions, arguments.truth, arguments.task, aliases.in_files, arguments.labels, arguments.mode)
    scoring = _scoring(arguments, matching, aliases)
    try:
        scores = _scores(scoring, matching)
    except JudgeUnreachable as error:
        raise JudgeUnreachable(f"{error} Then run the same command again to continue.") from None
    record = _record(arguments, matching, scoring, scores, resampling)
    write(_text(record, matching.references.is_emer))
    if arguments.output:
        paths = write_records(Path(arguments.output), record, scores)
        write(f"written: {', '.join(map(str, paths))}\n")


def _require_free(output: str) -> None:
    """Check that the output can be written and no file exists, before a judge is called, which costs time and money."""
    from emollama.evaluation.records import WRITTEN
    from emollama.paths import require_new_file, require_writable

    if Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"--output: '{output}' is a file. Specify a folder.")
    require_writable(Path(output), "--output")
    for name in WRITTEN:
        require_new_file(str(Path(output) / name))


class _Aliases(NamedTuple):
    """The values of ``--aliases``: all entries of the built-in maps, and the pairs of the user."""

    built_in: dict[str, str]
    own: dict[str, str]

    @property
    def in_files(self) -> dict[str, str]:
        """Label in a file -> label that it stands for."""
        return self.built_in | self.own


def _aliases(values: list[str]) -> _Aliases:
    built_in = [name for name in values if name in DATASET_LABELS]
    form = f"WORD=LABEL or one of {', '.join(DATASET_LABELS)}"
    own = pairs([value for value in values if value not in built_in], "--aliases", form)
    if skipped := [word for word, label in own.items() if label == SKIP]:
        text = f"'{skipped[0]}={SKIP}' would make {SKIP} a label; only maps of imports leave clips out"
        raise UserError(f"--aliases: {text}. Remove these clips from --truth.")
    merged: dict[str, str] = {}
    for name in built_in:
        for raw, label in DATASET_LABELS[name].items():
            if raw not in own and merged.setdefault(raw, label) != label:
                both = f"both '{merged[raw]}' and '{label}'"
                raise UserError(f"--aliases: '{raw}' stands for {both} in {' and '.join(built_in)}. Name one of these maps.")
    return _Aliases(merged, own)


def _scoring(arguments: argparse.Namespace, matching: Matching, aliases: _Aliases) -> Scoring:
    from emollama.evaluation.references import allowed_labels
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
        openset_path=matching.references.openset_path,
        synonyms_path=arguments.synonyms,
        wheel_folder=arguments.wheels,
        wheel_level=arguments.wheel_level,
        caption_tokenizer=arguments.caption_tokenizer,
    )
    labels = allowed_labels(matching.references, arguments.labels)
    return Scoring(
        cfg,
        labels=labels,
        aliases=answer_aliases(aliases.built_in, labels) | aliases.own,
        tasks=dict.fromkeys(matching.tasks, ("reference", "loss")),
        key="",
        options=OPTIONS,
    )


def _scores(scoring: Scoring, matching: Matching) -> dict[str, dict[str, TaskScores]]:
    """Return task -> file of answers -> scores."""
    scores: dict[str, dict[str, TaskScores]] = {task: {} for task in matching.tasks}
    for file in matching.files:
        tasks = [task for task, files in matching.tasks.items() if file in files]
        file_scores = scoring.score([prediction for task in tasks for prediction in matching.tasks[task][file].predictions])
        for task in tasks:
            scores[task][file] = file_scores[task]
    return scores


def _record(
    arguments: argparse.Namespace,
    matching: Matching,
    scoring: Scoring,
    scores: dict[str, dict[str, TaskScores]],
    resampling: Resampling,
) -> dict[str, Any]:
    from emollama.evaluation.records import task_record

    tasks = {task: {"files": task_record(by_file, matching.tasks[task], resampling)} for task, by_file in scores.items()}
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
    from emollama.reporting import score_tables

    short = score_tables.short_names(record["predictions"])
    lines = [*path_lines, ""] if (path_lines := score_tables.path_lines(short)) else []
    for task, task_record in record["tasks"].items():
        files = {short[file]: file_record for file, file_record in task_record["files"].items()}
        lines += [*score_tables.task_text(task, files), *score_tables.counts(files), "", *score_tables.name_lists(files), ""]
    if record["judge"]:
        lines += [score_tables.judge_line(record["judge"]), ""]
        lines += [*score_tables.published(), ""] if is_emer else []
    return "\n".join(lines) + "\n"

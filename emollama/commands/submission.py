"""Write the emotion words of answers as a submission to an open-vocabulary challenge: an .npz with filenames and fileitems."""

from __future__ import annotations

import argparse

from emollama.commands.arguments import add_imports, add_judge, import_modules, judge_block
from emollama.logs.console import write_plain

HELP = "write the emotion words of answers as a challenge submission (.npz)"
EXAMPLE = "emollama submission --predictions answers.jsonl --output submission.npz"
DOCS = "docs/evaluation.md#score-files-side-by-side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--predictions``, ``--judge``, ``--imports`` and ``--output``."""
    parser.add_argument("--predictions", required=True, metavar="FILE", help="file of answers: descriptions, or lists of words")
    add_judge(parser)
    add_imports(parser, "judges")
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="the file to write; it must not exist")


def run(arguments: argparse.Namespace) -> None:
    """Extract the emotion words of each answer and write them."""
    from emollama.errors import UserError
    from emollama.evaluation.input_files import read_predictions
    from emollama.evaluation.openset import extract_words
    from emollama.evaluation.submission import write_submission
    from emollama.listing import listing
    from emollama.paths import require_new_file
    from emollama.registry import JUDGES

    import_modules(arguments)
    path = require_new_file(arguments.output)
    file = read_predictions(arguments.predictions)
    tasks = {prediction.task for prediction in file.predictions}
    if len(tasks) > 1:
        raise UserError(
            f"{file.path} contains answers to several tasks ({', '.join(sorted(tasks))}),"
            " but a submission has one answer per clip. Split the file by task."
        )
    judge = JUDGES.built(judge_block(arguments.judge) or {"type": "lexical"}, "--judge")
    words_by_clip = extract_words({prediction.name: prediction.as_word_list for prediction in file.predictions}, judge)
    if unanswered := [name for name, words in words_by_clip.items() if words is None]:
        raise UserError(f"the judge '{judge.name}' gave no valid answer for {listing(unanswered, 'clip')}. Rerun the command.")
    write_submission(str(path), list(words_by_clip), [words or () for words in words_by_clip.values()])
    empty = sum(not words for words in words_by_clip.values())
    write_plain(f"{path}: {len(words_by_clip)} clips, {empty} of them without an emotion word\n")

"""``emollama submission``: answers as the open-vocabulary challenges take them, an ``.npz`` with filenames and fileitems."""

from __future__ import annotations

import argparse

from emollama.commands.arguments import add_judge, judge_block
from emollama.logs.console import write_plain

HELP = "write the emotion words of answers as a challenge's .npz (filenames, fileitems)"
EXAMPLE = "emollama submission --predictions answers.jsonl --output submission.npz"
DOCS = "docs/evaluation.md#score-files-side-by-side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--predictions``, ``--judge``, ``--output``."""
    parser.add_argument("--predictions", required=True, metavar="FILE", help="answers: descriptions, or lists of words")
    add_judge(parser)
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="the file to write; it must not be there")


def run(arguments: argparse.Namespace) -> None:
    """Find the words of every answer and write them."""
    from emollama.errors import UserError
    from emollama.evaluation.answer_files import read_answers
    from emollama.evaluation.openset import extract_words
    from emollama.evaluation.submission import write_submission
    from emollama.listing import listing
    from emollama.paths import require_new_file
    from emollama.registry import JUDGES

    place = require_new_file(arguments.output)
    file = read_answers(arguments.predictions)
    tasks = {answer.task for answer in file.answers}
    if len(tasks) > 1:
        raise UserError(f"{file.path} holds answers to several tasks ({', '.join(sorted(tasks))}); a submission takes one a clip")
    judge = JUDGES.built(judge_block(arguments.judge) or {"type": "lexical"}, "--judge")
    words = extract_words({answer.name: answer.prediction for answer in file.answers}, judge)
    if unread := [name for name, found in words.items() if found is None]:
        raise UserError(f"the judge '{judge.name}' found no words for clips {listing(unread)}. Run the command again.")
    write_submission(str(place), list(words), [found or () for found in words.values()])
    empty = sum(not found for found in words.values())
    write_plain(f"{place}: {len(words)} clips, {empty} of them without an emotion word\n")

"""``emollama submission``: writes the emotion words of descriptions and lists in the challenges' format."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from emollama.commands import submission
from emollama.errors import UserError


def submitted(tmp_path, rows, *more):
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parser = argparse.ArgumentParser()
    submission.add_arguments(parser)
    arguments = ["--predictions", str(tmp_path / "answers.jsonl"), "--output", str(tmp_path / "words.npz"), *more]
    submission.run(parser.parse_args(arguments))
    with np.load(tmp_path / "words.npz", allow_pickle=False) as archive:
        return dict(zip(archive["filenames"].tolist(), archive["fileitems"].tolist(), strict=True))


def row(name, prediction, task="reason_v2"):
    return {"name": name, "task": task, "prediction": prediction, "reference": None, "loss": None}


def test_descriptions_and_lists_are_converted_to_lists_of_words(tmp_path):
    rows = [row("a", "She is happy, and not at all angry."), row("b", "['proud', 'calm']"), row("c", "")]
    assert submitted(tmp_path, rows) == {"a": "['happy']", "b": "['proud', 'calm']", "c": "[]"}


def test_answers_to_two_tasks_are_refused(tmp_path):
    with pytest.raises(UserError, match="several tasks"):
        submitted(tmp_path, [row("a", "happy", "emotion"), row("a", "She is happy.")])


def test_an_existing_output_file_is_not_overwritten(tmp_path):
    (tmp_path / "words.npz").write_text("mine")
    with pytest.raises(UserError, match="--output"):
        submitted(tmp_path, [row("a", "happy")])
    assert (tmp_path / "words.npz").read_text() == "mine"

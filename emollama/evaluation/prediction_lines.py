"""Prediction files with one JSON object per line: those of a run, and those of Emotion-LLaMA-v2's evaluation.

A run writes ``name`` and ``prediction``, and optionally ``task``, ``reference`` and ``loss``
(:class:`emollama.run_folder.PredictionRecord`). Emotion-LLaMA-v2 writes ``video_id`` and ``response``, and optionally ``answer``
(the reference), ``mode`` (the part of the dataset), and ``new_response``, which its scorer prefers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from emollama.data.problems import Problem, raise_all
from emollama.errors import UserError
from emollama.evaluation.predictions import Prediction, parse_line, parse_prediction
from emollama.evaluation.word_lists import is_label, is_plain_list
from emollama.listing import abbreviated
from emollama.paths import read_text
from emollama.text_encoding import encodable


def read_lines(path: str, mode: str | None) -> list[Prediction]:
    """Return the predictions in a file, in order.

    Args:
        path: the file.
        mode: the part of the dataset to read from a file of Emotion-LLaMA-v2; None for all.

    Raises:
        UserError: If there are no predictions (of the mode), or lines are invalid or repeated (all are listed).
    """
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    # A damaged line does not say which of the two kinds the file is.
    v2 = next((kind for _, line in lines if (kind := _is_v2(line)) is not None), False)
    predictions: dict[int, Prediction] = {}
    problems = []
    for number, line in lines:
        try:
            predictions[number] = (_parse_v2 if v2 else parse_prediction)(line)
        except ValueError as error:
            problems.append(Problem("list", f"{path}, line {number}: {error}"))
    if v2 and mode is not None:
        predictions = _of_mode(path, predictions, mode)
    first_lines: dict[tuple[str, str], int] = {}
    for number, prediction in predictions.items():
        if (first := first_lines.setdefault((prediction.name, prediction.task), number)) != number:
            same = prediction.mode == predictions[first].mode
            remedy = "Remove one of the two." if same else f"Choose one of their modes with --mode, such as {prediction.mode}."
            text = f"line {first} already has a prediction for '{prediction.name}'. {remedy}"
            problems.append(Problem("list", f"{path}, line {number}: {text}"))
    raise_all(problems)
    if not predictions:
        raise UserError(f"{path}: the file contains no predictions")
    return _with_label_task(path, list(predictions.values())) if v2 else list(predictions.values())


def _of_mode(path: str, predictions: Mapping[int, Prediction], mode: str) -> dict[int, Prediction]:
    chosen = {number: prediction for number, prediction in predictions.items() if prediction.mode == mode}
    if not chosen:
        modes = sorted({prediction.mode for prediction in predictions.values() if prediction.mode})
        raise UserError(f"{path}: --mode: no prediction has the mode '{mode}'. Its modes: {abbreviated(modes) or 'none'}.")
    return chosen


def _with_label_task(path: str, predictions: list[Prediction]) -> list[Prediction]:
    """Return the predictions of Emotion-LLaMA-v2, with the task emotion if their answers are labels. Log their modes."""
    modes = Counter(prediction.mode for prediction in predictions if prediction.mode)
    if len(modes) > 1:
        counts = ", ".join(f"{mode} ({count:,})" for mode, count in modes.items())
        logging.getLogger("emollama").warning("%s: has predictions of the modes %s. Choose one with --mode.", path, counts)
    labels = [prediction.reference for prediction in predictions if prediction.reference]
    is_labelled = bool(labels) and all(isinstance(label, str) and is_label(label) for label in labels)
    return [replace(prediction, task="emotion") for prediction in predictions] if is_labelled else predictions


def _is_v2(line: str) -> bool | None:
    """Return whether a line has ``video_id`` in place of ``name``, as those of Emotion-LLaMA-v2; None if it has neither."""
    try:
        row = parse_line(line)
    except ValueError:
        return None
    keys = {"name", "video_id"} & {*row} if isinstance(row, dict) else ()
    return "name" not in keys if keys else None


def _parse_v2(line: str) -> Prediction:
    """Return the prediction in a line of Emotion-LLaMA-v2's evaluation: video_id, response, and optionally answer and mode.

    A ``new_response`` replaces the response, as in its scorer. Its prompts ask for labels or for words separated by commas.

    Raises:
        ValueError: If the line is not a JSON object with the expected fields.
    """
    row = parse_line(line)
    fields = row if isinstance(row, dict) else {}
    name, response = fields.get("video_id"), fields.get("new_response") or fields.get("response")
    answer, mode = fields.get("answer"), fields.get("mode")
    is_name = isinstance(name, str | int) and not isinstance(name, bool) and str(name).strip()
    if not is_name or not isinstance(response, str) or not isinstance(answer, str | None) or not isinstance(mode, str | None):
        raise ValueError("expected an object with a 'video_id' and the string 'response' (optional strings: 'answer', 'mode')")
    reference = None if answer is None else encodable(answer)
    return Prediction(encodable(str(name)), "", encodable(response), reference, is_word_list=is_plain_list(response), mode=mode)

"""Predictions as the metrics receive them: the answers of a model as plain texts, produced by any program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from emollama.json_io import parse_json
from emollama.text_encoding import encodable

Reference = str | list[str]  # one reference text, or several: the captions of an image
CAPTION = "caption"  # the task whose predictions are compared with several references each
DESCRIPTION_TASKS = ("reason", "reason_v2", "")  # "" if a file does not state its task


@dataclass(frozen=True)
class Prediction:
    """The answer of a model to one task about one sample.

    Attributes:
        name: the sample's name.
        task: emotion, reason, reason_v2 or caption; "" if the file does not state it.
        text: the answer; "" if the sample has none.
        reference: unprocessed reference text (a label, a description) or texts (captions); None if the data has none.
        loss: mean cross-entropy of the target, in nats per token; None if it was not computed.
        is_word_list: whether the text is a list of words without brackets.
        mode: the part of the dataset to which the file assigns the sample, such as test1; None if it does not state it.
    """

    name: str
    task: str
    text: str
    reference: Reference | None = None
    loss: float | None = None
    is_word_list: bool = False
    mode: str | None = None

    @property
    def as_word_list(self) -> str:
        """The text; in brackets if it is a list of words."""
        return f"[{self.text}]" if self.is_word_list else self.text

    @property
    def reference_text(self) -> str | None:
        """The reference as one text, several captions on one line each; None without a reference."""
        return "\n".join(self.reference) if isinstance(self.reference, list) else self.reference

    @property
    def captions(self) -> list[str]:
        """The reference texts that are not blank."""
        references = [self.reference] if isinstance(self.reference, str) else self.reference or []
        return [caption for caption in references if caption.strip()]


def parse_caption(entry: Any) -> Prediction:
    """Return the prediction in an entry of COCO results; keys other than image_id and caption are ignored.

    Raises:
        ValueError: If the entry has no valid image_id and caption.
    """
    name, caption = (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
    if isinstance(name, bool) or not isinstance(name, int | str) or not str(name).strip() or not isinstance(caption, str):
        raise ValueError(f'expected an image_id and a caption, {{"image_id": 7, "caption": "..."}}, got {str(entry)[:60]}')
    return Prediction(encodable(str(name)), CAPTION, encodable(caption))


def parse_prediction(line: str) -> Prediction:
    """Return the prediction in a line of ``predictions_*.jsonl``.

    Raises:
        ValueError: If the line is not a JSON object with the expected fields.
    """
    row = parse_line(line)
    optional: dict[str, Any] = {"task": str | None, "reference": str | list | None, "loss": float | int | None}
    types = {"name": str, "prediction": str} | optional
    if not isinstance(row, dict) or not all(isinstance(row.get(key), value_type) for key, value_type in types.items()):
        raise ValueError("expected an object with the strings 'name' and 'prediction' (optional: 'task', 'reference', 'loss')")
    reference = row.get("reference")
    if isinstance(reference, list) and not all(isinstance(text, str) for text in reference):
        raise ValueError("expected 'reference' to be a string or a list of strings")
    if reference is not None:
        reference = list(map(encodable, reference)) if isinstance(reference, list) else encodable(reference)
    return Prediction(encodable(row["name"]), row.get("task") or "", encodable(row["prediction"]), reference, row.get("loss"))


def parse_line(line: str) -> Any:
    """Return the JSON value in a line; NaN and infinities are None.

    Raises:
        ValueError: If the line is not JSON, or is nested too deeply.
    """
    try:
        return parse_json(line, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg}") from None

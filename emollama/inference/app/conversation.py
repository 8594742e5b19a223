"""A conversation with one or two models about one clip: what a session of the page remembers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emollama import __version__
from emollama.inference.intended_use import INTENDED_USE
from emollama.inference.requests import EMOTION, Answer, GenerationOptions, Request, Turn

Probabilities = Mapping[str, float]  # label -> probability among the labels


@dataclass(frozen=True)
class Exchange:
    """A question and the answers of all models.

    Attributes:
        question: the question; "" if it was the instruction of the conversation's task.
        mask_slots: slots whose features were replaced by zeros.
        answers: the answers, one per model.
    """

    question: str
    mask_slots: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Conversation:
    """A clip, and what was asked and answered about it.

    Attributes:
        video: path of the clip; None before there is one.
        text: the spoken sentence; None if it is unknown.
        task: the task of the first question; None for a free-form question.
        options: how answers are generated.
        exchanges: questions and answers, in order.
        probabilities: label probabilities with all modalities, one per model; empty if they were not computed.
        mask_slots: the slots that are masked now.
        masked: label probabilities with these slots masked, one per model; empty if none is masked.
    """

    video: str | None = None
    text: str | None = None
    task: str | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    exchanges: tuple[Exchange, ...] = ()
    probabilities: tuple[Probabilities, ...] = ()
    mask_slots: tuple[str, ...] = ()
    masked: tuple[Probabilities, ...] = ()

    def request(self, model: int, question: str | None, *, label_probabilities: bool = False) -> Request:
        """Return the next request to a model.

        Args:
            model: index of the model, which remembers its own answers.
            question: the question; None asks the task's instruction.
            label_probabilities: whether the answer has label probabilities.
        """
        return Request(
            video=self.video,
            text=self.text,
            task=self.task,
            question=question,
            history=[Turn(exchange.question, exchange.answers[model].text) for exchange in self.exchanges],
            mask_slots=self.mask_slots,
            label_probabilities=label_probabilities,
            options=self.options,
        )

    def probability_request(self) -> Request:
        """Return a request for the label probabilities with the modalities that are not masked."""
        options = GenerationOptions(max_new_tokens=1)
        return Request(
            video=self.video,
            text=self.text,
            task=EMOTION,
            mask_slots=self.mask_slots,
            label_probabilities=True,
            options=options,
        )

    def answered(self, question: str, answers: Sequence[Answer]) -> Conversation:
        """Return the conversation with a further exchange; the first one sets the probabilities."""
        exchange = Exchange(question, self.mask_slots, tuple(answers))
        probabilities = self.probabilities
        if not self.exchanges:
            probabilities = tuple(answer.label_probabilities for answer in answers if answer.label_probabilities is not None)
        return dataclasses.replace(self, exchanges=(*self.exchanges, exchange), probabilities=probabilities)

    def as_json(self, models: Sequence[str], version: str = __version__) -> str:
        """Return the conversation as a JSON document, with the identity of all models.

        Args:
            models: names of the models.
            version: version of emollama.
        """
        first = self.exchanges[0].answers if self.exchanges else ()
        checkpoints = [dataclasses.asdict(answer.checkpoint) for answer in first]
        document = {
            "emollama": version,
            "video": None if self.video is None else Path(self.video).name,
            "text": self.text,
            "task": self.task,
            "options": _without_none(dataclasses.asdict(self.options)),
            "models": [{"name": name, "checkpoint": checkpoint} for name, checkpoint in zip(models, checkpoints, strict=True)],
            "label_probabilities": list(self.probabilities),
            "mask_slots": list(self.mask_slots),
            "masked_label_probabilities": list(self.masked),
            "exchanges": [dataclasses.asdict(exchange) for exchange in self.exchanges],
            "intended_use": INTENDED_USE,
        }
        return json.dumps(document, ensure_ascii=False, indent=2)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

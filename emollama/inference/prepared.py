"""Requests whose prompts are ready for the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emollama.data.batch import Sample
from emollama.decoding.answer_generator import LabelAnswers, Prompt
from emollama.inference.requests import Modality


@dataclass(frozen=True)
class LabelQuestion:
    """A prompt whose answer is the probability of each label.

    Attributes:
        sample: the tokenized prompt.
        answers: the labels and their answers.
    """

    sample: Sample
    answers: LabelAnswers


@dataclass(frozen=True)
class PreparedRequest:
    """What the language model needs to answer a request.

    Attributes:
        task: name of the task; None for a question without a task.
        body: the first user turn with tags at the positions of feature tokens.
        sentence: the spoken sentence in the prompt; None if the prompt has no sentence.
        modalities: slot -> the model's input for it.
        prompt: the prompt of a generated answer; None if the answer is the most probable label.
        beam_search: keyword arguments of transformers' ``generate``; None without beam search.
        labels: the prompt for the probabilities of the labels; None if they are not needed.
        num_tokens: number of tokens of the prompt.
    """

    task: str | None
    body: str
    sentence: str | None
    modalities: dict[str, Modality]
    prompt: Prompt | None
    beam_search: dict[str, Any] | None
    labels: LabelQuestion | None
    num_tokens: int

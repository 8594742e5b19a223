"""Requests and answers of the :class:`~emollama.inference.engine.Engine`, and its errors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal, TypeAlias

import numpy as np

from emollama.errors import UserError

EMOTION = "emotion"  # the task whose answers are labels
MAX_CHARACTERS = 100_000  # of the texts of a request together, which are several times the context of a language model
MAX_SEED = 2**63 - 1
Media: TypeAlias = str | os.PathLike[str] | bytes  # path of a file, or its content


class RequestError(UserError):
    """A request that cannot be answered.

    Attributes:
        param: the field of :class:`Request` with the problem.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def _require(field_name: str, value: object, expected: str, *, is_valid: bool) -> None:
    """Raise an error that names a field and its types, but not its value, which may be private."""
    if not is_valid:
        param = re.split(r"[.[]", field_name)[0]
        raise RequestError(f"{field_name}: expected {expected}, got {type(value).__name__}. Correct the request.", param)


def _require_items(field_name: str, items: object, kind: type, kinds: str) -> None:
    """Check a sequence of objects of one type. A single text is not a sequence of texts."""
    is_sequence = isinstance(items, Sequence) and not isinstance(items, str | bytes)
    _require(field_name, items, f"a list of {kinds}", is_valid=is_sequence)
    for index, item in enumerate(items if isinstance(items, Sequence) else ()):
        _require(f"{field_name}[{index}]", item, kinds, is_valid=isinstance(item, kind))


@dataclass(frozen=True)
class GenerationOptions:
    """How the text of an answer is generated. None selects the value of the evaluation block.

    Attributes:
        max_new_tokens: maximum number of tokens of the answer.
        temperature: 0 decodes greedily; values above 0 sample.
        top_p: sample only from the most likely tokens whose probabilities add up to this value.
        repetition_penalty: values above 1 make tokens that were already generated less likely.
        seed: random seed of sampling.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            RequestError: If a value is not a finite number, or the seed has more than 64 bits.
        """
        for name, kind, expected in (
            ("max_new_tokens", Integral, "a whole number"),
            ("temperature", Real, "a finite number"),
            ("top_p", Real, "a finite number"),
            ("repetition_penalty", Real, "a finite number"),
            ("seed", Integral, "a whole number"),
        ):
            value = getattr(self, name)
            is_number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
            _require(f"options.{name}", value, f"{expected} or None", is_valid=value is None or is_number)
        if self.seed is not None and abs(self.seed) > MAX_SEED:
            raise RequestError(f"options.seed: it must be from {-MAX_SEED} to {MAX_SEED}. Set another seed.", "options")


@dataclass(frozen=True)
class Turn:
    """An earlier turn of a conversation about the same clip.

    Attributes:
        question: the question; "" for the first turn if it was the instruction of the request's task.
        answer: the answer of the model.
    """

    question: str
    answer: str


@dataclass(frozen=True)
class Request:
    """A question about one clip or image.

    Attributes:
        video: a video file.
        image: an image file, which counts as a video of one frame.
        audio: an audio file, which replaces the sound of the video.
        features: slot -> array, as the slot's encoder would have extracted it. It replaces the features of the media.
        text: the spoken sentence. With None, the sentence is empty if the samples of the evaluation block have sentences, and
            left out otherwise.
        task: name of a task, whose tag and first instruction are in the prompt. None without a question selects the first task
            of the evaluation block; None with a question leaves out the tag.
        question: a free-form question in place of the task's instruction.
        history: earlier turns about the same clip, the first one first. ``question`` is then the next question.
        mask_slots: slots whose features are replaced by zeros.
        label_probabilities: also compute the probability of each label, by the likelihood of the answers to the task emotion.
        options: how the answer is generated.
    """

    video: Media | None = None
    image: Media | None = None
    audio: Media | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    text: str | None = None
    task: str | None = None
    question: str | None = None
    history: Sequence[Turn] = ()
    mask_slots: Sequence[str] = ()
    label_probabilities: bool = False
    options: GenerationOptions = GenerationOptions()

    def __post_init__(self) -> None:
        """Check the types, which otherwise fail in another thread, and the length, because tokenizing long texts takes long.

        Raises:
            RequestError: If a field has another type, or the texts are too long.
        """
        for name in ("video", "image", "audio"):
            value = getattr(self, name)
            is_media = value is None or isinstance(value, str | bytes | os.PathLike)
            _require(name, value, "a path, the content of a file as bytes, or None", is_valid=is_media)
        for name in ("text", "task", "question"):
            value = getattr(self, name)
            _require(name, value, "a str or None", is_valid=value is None or isinstance(value, str))
        _require("features", self.features, "a mapping of slots to arrays", is_valid=isinstance(self.features, Mapping))
        _require_items("history", self.history, Turn, "emollama.Turn")
        for index, turn in enumerate(self.history):
            for name in ("question", "answer"):
                value = getattr(turn, name)
                _require(f"history[{index}].{name}", value, "a str", is_valid=isinstance(value, str))
        texts = [self.text or "", self.question or "", *(text for turn in self.history for text in (turn.question, turn.answer))]
        if (characters := sum(map(len, texts))) > MAX_CHARACTERS:
            field_name = "history" if self.history else "question" if self.question else "text"
            text = f"the texts have {characters:,} characters, and at most {MAX_CHARACTERS:,} are possible"
            raise RequestError(f"{field_name}: {text}. Shorten them, or start a new conversation.", field_name)
        _require_items("mask_slots", self.mask_slots, str, "str, the names of slots")
        _require("label_probabilities", self.label_probabilities, "a bool", is_valid=isinstance(self.label_probabilities, bool))
        is_options = isinstance(self.options, GenerationOptions)
        _require("options", self.options, "an emollama.GenerationOptions", is_valid=is_options)


@dataclass(frozen=True)
class Modality:
    """The input of the model for one slot.

    Attributes:
        state: "real" for feature vectors of this clip; "zero" for zeros, because the encoder failed on this clip or the slot is
            masked; "missing" if the slot has no encoder, or the evaluation block does not use it.
        why: the source of the feature vectors, or why there are none.
    """

    state: Literal["real", "zero", "missing"]
    why: str


@dataclass(frozen=True)
class Timings:
    """Where the time of an answer went, in seconds.

    Attributes:
        queue: waiting for other requests.
        features: decoding of the media and extraction of the features.
        generation: language model, from the first pass over the prompt to the last token.
    """

    queue: float
    features: float
    generation: float


@dataclass(frozen=True)
class Checkpoint:
    """The trained weights of an engine.

    Attributes:
        files: names of the checkpoint files, without folders.
        sha256: their digests.
    """

    files: tuple[str, ...]
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        text: the answer.
        task: name of the task; None for a question without a task.
        prompt: the first user turn, with tags such as <VideoHere> at the positions of feature tokens.
        sentence: the spoken sentence in the prompt; None if the prompt has no sentence.
        modalities: slot -> the model's input for it.
        label_probabilities: label -> probability among the labels; None if they were not computed.
        finish_reason: "stop" if the model ended the answer, "length" if it reached ``max_new_tokens``.
        prompt_tokens: number of tokens of the prompt, including feature tokens.
        cached_tokens: number of tokens of the prompt that an earlier turn of the conversation had processed.
        completion_tokens: number of generated tokens.
        timings: where the time went.
        checkpoint: the weights that answered.
    """

    text: str
    task: str | None
    prompt: str
    sentence: str | None
    modalities: dict[str, Modality]
    label_probabilities: dict[str, float] | None
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    timings: Timings
    checkpoint: Checkpoint


class UnusableInput(RequestError):
    """The media of a request cannot be decoded, or provide no features for any slot of the model."""


class QueueFull(UserError):
    """The engine has accepted as many requests as it may. Try again later."""


class EngineClosed(UserError):
    """The engine was closed before it could answer."""


class RemoteFailure(UserError):
    """The server that runs the language model cannot be reached, refused a request, or returned something else than an answer."""

"""What a visitor entered, checked and turned into the conversation that it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from emollama.errors import UserError
from emollama.inference.app.bodies import INVALID
from emollama.inference.app.conversation import Conversation
from emollama.inference.requests import GenerationOptions

NO_VIDEO = "There is no video yet. Upload or record one, or pick an example."
MAX_NEW_TOKENS = 1024  # that a visitor may set


@dataclass(frozen=True)
class Inputs:
    """What a visitor entered, in the order of the components. Fields of an accordion that was never open are None."""

    video: str | None
    text: str
    task: str | None
    question: str
    max_new_tokens: str | None
    temperature: str | None
    seed: str | None

    def conversation(self) -> Conversation:
        """Return a new conversation about the clip.

        Raises:
            UserError: If there is no clip, or an option is not a number or too large.
        """
        if self.video is None:
            raise UserError(NO_VIDEO)
        if not all(isinstance(value, str) for value in (self.video, self.text, self.question)):
            raise UserError(INVALID)
        max_new_tokens = _number(self.max_new_tokens, "maximum length", int)
        if max_new_tokens is not None and max_new_tokens > MAX_NEW_TOKENS:
            raise UserError(f"Options: the maximum length is {max_new_tokens}. Enter at most {MAX_NEW_TOKENS} tokens.")
        options = GenerationOptions(
            max_new_tokens=max_new_tokens,
            temperature=_number(self.temperature, "temperature", float),
            seed=_number(self.seed, "seed", int),
        )
        task = None if self.question.strip() else self.task
        return Conversation(self.video, self.text.strip() or None, task, options)


Number = TypeVar("Number", int, float)


def _number(text: str | None, name: str, kind: type[Number]) -> Number | None:
    """Return the number in a field; None if the field is empty."""
    try:
        return kind(text) if text and text.strip() else None
    except ValueError:
        raise UserError(f"Options: the {name} '{text}' is not a number. Correct it, or leave the field empty.") from None

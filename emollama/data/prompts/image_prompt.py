"""Prompts of MiniGPT-4: one image inside the text, where ``<ImageHere>`` stands; wordings out of a file of prompts.

Source of the form: the published MiniGPT-4 training code. One BOS, then the text before the image and the text behind it, each
tokenized alone, the image's rows between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from emollama.config.packaged import find_shipped
from emollama.data.batch import Record
from emollama.data.prompts.image_placeholder import MARK, checked
from emollama.data.prompts.prompt import Parts, Placeholders, Prompt
from emollama.data.prompts.prompt_style import LossAverage, PromptLayout, PromptStyle
from emollama.errors import UserError
from emollama.paths import read_text

IMAGE = f"<Img>{MARK}</Img> "  # goes before an instruction that does not say where the image stands
BUILT_IN = (
    f"{IMAGE}Describe this picture.",
    f"{IMAGE}What does this picture show?",
    f"{IMAGE}Tell what can be seen in this image.",
    f"{IMAGE}Write a caption for this image.",
)


def read_prompts(path: str, key: str) -> tuple[str, ...]:
    """The prompts of a file, a line each; blank lines are passed over.

    Args:
        path: UTF-8 text.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: no such file, no prompt in it, or a line that :func:`checked` refuses.
    """
    prompts = []
    for number, line in enumerate(read_text(find_shipped(path, key)).splitlines(), 1):
        try:
            prompts += [checked(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{key}: '{path}', line {number}: {error}") from None
    if not prompts:
        raise UserError(f"{key}: '{path}' holds no prompt. A prompt is a line such as {IMAGE}Describe this picture.")
    return tuple(prompts)


class ImagePrompt(Prompt):
    """Turns records with one image into samples. A record that says nothing is asked with one of the model's own prompts.

    Args:
        tokenizer: a Hugging Face tokenizer.
        style: the model's template, end symbol and length limits.
        placeholders: what the fusion module emits, all of it where ``<ImageHere>`` stands.
        prompts: the model's own; one is drawn in training, evaluation takes the first.
        loss_average: as :class:`~emollama.data.prompts.prompt.Prompt` has it.
    """

    def __init__(
        self,
        tokenizer: Any,
        style: PromptStyle,
        placeholders: Placeholders,
        prompts: Sequence[str],
        loss_average: LossAverage = "sample",
    ) -> None:
        super().__init__(tokenizer, style, placeholders, loss_average)
        self.prompts = prompts

    def digest(self) -> str:
        """Of the model's own prompts."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:16]

    def body(self, record: Record) -> str:
        """The text of the first turn, with the mark where the image's rows go."""
        return self.apply_instruction(record.turns[0][0], None)

    def apply_instruction(self, words: str, rng: np.random.Generator | None) -> str:
        """The words with the image's mark; one of the model's own prompts where there are none."""
        if not words.strip():
            words = self.prompts[0 if rng is None else int(rng.integers(len(self.prompts)))]
        return words if MARK in words else IMAGE + words

    def first_turn(self, words: str, layout: PromptLayout) -> tuple[Parts, str, str]:
        """The text before the image and the image's rows, nothing, and the text behind the image; the same in every layout."""
        before, _, behind = words.partition(MARK)
        return [self.style.opening + self._as_text(before), self.placeholders.video], "", behind

"""Prompts of MiniGPT-4: one image at ``<ImageHere>`` inside the text, and instructions from a file of prompts.

The format is that of the published MiniGPT-4 training code: one BOS, the text before the image, the feature tokens of the image,
and the text after it. The two texts are tokenized separately.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from emollama.config.packaged import find_shipped
from emollama.data.batch import Record
from emollama.data.prompts.image_tag import IMAGE_TAG, check_instruction
from emollama.data.prompts.prompt import FeatureTokenLayout, PromptFormat, TurnParts
from emollama.data.prompts.prompt_style import LossAverage, PromptLayout, PromptStyle
from emollama.errors import UserError
from emollama.paths import read_text

IMAGE = f"<Img>{IMAGE_TAG}</Img> "  # prepended to an instruction without <ImageHere>
BUILT_IN = (
    f"{IMAGE}Describe this picture.",
    f"{IMAGE}What does this picture show?",
    f"{IMAGE}Tell what can be seen in this image.",
    f"{IMAGE}Write a caption for this image.",
)


def read_prompts(path: str, key: str) -> tuple[str, ...]:
    """Read a file of prompts with one prompt per line; blank lines are skipped.

    Args:
        path: UTF-8 text.
        key: the configuration key that named the file, for messages.

    Raises:
        UserError: If the file does not exist or has no prompt, or :func:`check_instruction` rejects a line.
    """
    prompts = []
    for line_number, line in enumerate(read_text(find_shipped(path, key)).splitlines(), 1):
        try:
            prompts += [check_instruction(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"{key}: '{path}', line {line_number}: {error}") from None
    if not prompts:
        raise UserError(f"{key}: '{path}' contains no prompt. Expected lines such as {IMAGE}Describe this picture.")
    return tuple(prompts)


class ImagePromptFormat(PromptFormat):
    """The prompt format of MiniGPT-4. A record with an empty user text gets one of the model's own prompts.

    Args:
        tokenizer: a Hugging Face tokenizer.
        style: the model's template, end symbol and length limits.
        feature_tokens: the feature tokens of the fusion module, all of which are inserted at ``<ImageHere>``.
        prompts: the model's own prompts; training draws one, evaluation uses the first.
        loss_average: see :class:`~emollama.data.prompts.prompt.PromptFormat`.
    """

    def __init__(
        self,
        tokenizer: Any,
        style: PromptStyle,
        feature_tokens: FeatureTokenLayout,
        prompts: Sequence[str],
        loss_average: LossAverage = "sample",
    ) -> None:
        super().__init__(tokenizer, style, feature_tokens, loss_average)
        self.prompts = prompts

    def digest(self) -> str:
        """Return a hash of the model's own prompts."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:16]

    def body(self, record: Record) -> str:
        """Return the text of the first turn, with ``<ImageHere>`` at the position of the image."""
        return self.apply_instruction(record.turns[0][0], None)

    def apply_instruction(self, user_text: str, rng: np.random.Generator | None) -> str:
        """Return the user text with ``<ImageHere>``; an empty one is replaced by one of the model's own prompts."""
        if not user_text.strip():
            user_text = self.prompts[0 if rng is None else int(rng.integers(len(self.prompts)))]
        return user_text if IMAGE_TAG in user_text else IMAGE + user_text

    def first_turn(self, user_text: str, layout: PromptLayout) -> TurnParts:
        """Split at the image: the segments up to the image, an empty prefix, and the text after it. All layouts are equal."""
        before, _, after = user_text.partition(IMAGE_TAG)
        return TurnParts([self.style.opening + self._as_text(before), self.feature_tokens.outputs["image"]], "", after)

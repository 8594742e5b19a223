"""What a configuration says about prompts: template, limits, layout, and how the loss is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PromptLayout = Literal["train", "upstream_eval"]
LossAverage = Literal["sample", "token"]


@dataclass(frozen=True)
class PromptStyle:
    """How a model wraps a turn.

    Attributes:
        template: text with one ``{}`` where the turn's body goes, such as ``[INST] {} [/INST]``.
        chat_template: False leaves the template out.
        end_sym: ends every answer.
        max_txt_len: tokens of one answer, the end symbol included; longer ones are cut before it.
        max_context_len: tokens of the prompt's text; what exceeds is cut from the start of the user's words.
    """

    template: str
    chat_template: bool
    end_sym: str
    max_txt_len: int
    max_context_len: int

    @property
    def opening(self) -> str:
        """What stands before the body."""
        return self.template.partition("{}")[0] if self.chat_template else ""

    @property
    def closing(self) -> str:
        """What stands after the body."""
        return self.template.partition("{}")[2] if self.chat_template else ""

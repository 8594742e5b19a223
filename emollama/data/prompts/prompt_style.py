"""The settings of the ``model`` block for every prompt format: template of a turn, end symbol, length limits, loss averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossAverage = Literal["sample", "token"]


@dataclass(frozen=True)
class PromptStyle:
    """The template of a turn and its length limits.

    Attributes:
        template: text in which ``{}`` stands for the body of the turn, such as ``[INST] {} [/INST]``.
        chat_template: whether the template is used.
        end_sym: text at the end of every answer.
        max_txt_len: maximum number of tokens of an answer, including the end symbol; longer answers are cut before it.
        max_context_len: maximum number of text tokens of a prompt; excess tokens are cut from the start of the user text.
    """

    template: str
    chat_template: bool
    end_sym: str
    max_txt_len: int
    max_context_len: int

    @property
    def opening(self) -> str:
        """The part of the template before the body."""
        return self.template.partition("{}")[0] if self.chat_template else ""

    @property
    def closing(self) -> str:
        """The part of the template after the body."""
        return self.template.partition("{}")[2] if self.chat_template else ""

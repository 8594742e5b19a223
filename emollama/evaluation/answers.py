"""Answers as metrics see them: plain texts, whoever gave them."""

from __future__ import annotations

from dataclasses import dataclass

Reference = str | list[str]  # the data's own text, or several of them: the captions of an image


@dataclass(frozen=True)
class Answer:
    """One clip's answer to one task.

    Attributes:
        name: the clip.
        task: emotion, reason, reason_v2, caption; "" where a file does not say.
        prediction: what was answered; "" where the clip has no answer.
        reference: the data's own text (a label, a description) or texts (captions), unprocessed; None where there is none.
        loss: mean cross-entropy of the target; None where it was not computed.
    """

    name: str
    task: str
    prediction: str
    reference: Reference | None = None
    loss: float | None = None

    @property
    def truth(self) -> str | None:
        """The reference as one text, a line each where there are several; None where there is none."""
        return "\n".join(self.reference) if isinstance(self.reference, list) else self.reference

    @property
    def captions(self) -> list[str]:
        """The references that have words."""
        given = [self.reference] if isinstance(self.reference, str) else self.reference or []
        return [caption for caption in given if caption.strip()]

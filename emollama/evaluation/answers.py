"""Answers as metrics see them: plain texts, whoever gave them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One clip's answer to one task.

    Attributes:
        name: the clip.
        task: emotion, reason, reason_v2; "" where a file does not say.
        prediction: what was answered; "" where the clip has no answer.
        reference: the data's own text (a label, a description), unprocessed; None where there is none.
        loss: mean cross-entropy of the target; None where it was not computed.
    """

    name: str
    task: str
    prediction: str
    reference: str | None = None
    loss: float | None = None

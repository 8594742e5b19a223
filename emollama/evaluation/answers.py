"""Answers as the metrics receive them: plain texts, produced by any program."""

from __future__ import annotations

from dataclasses import dataclass

Reference = str | list[str]  # one reference text, or several: the captions of an image


@dataclass(frozen=True)
class Answer:
    """The answer to one task about one sample.

    Attributes:
        name: the sample's name.
        task: emotion, reason, reason_v2 or caption; "" if the file does not state it.
        prediction: the answer's text; "" if the sample has no answer.
        reference: unprocessed reference text (a label, a description) or texts (captions); None if the data has none.
        loss: mean cross-entropy of the target, in nats per token; None if it was not computed.
    """

    name: str
    task: str
    prediction: str
    reference: Reference | None = None
    loss: float | None = None

    @property
    def truth(self) -> str | None:
        """The reference as one text, several captions on one line each; None without a reference."""
        return "\n".join(self.reference) if isinstance(self.reference, list) else self.reference

    @property
    def captions(self) -> list[str]:
        """The reference texts that are not blank."""
        references = [self.reference] if isinstance(self.reference, str) else self.reference or []
        return [caption for caption in references if caption.strip()]

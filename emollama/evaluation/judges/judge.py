"""The interface of judges. Texts are passed as lists, so that a judge can ask about several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from emollama.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one pair.

    Attributes:
        score: 0 to 10; None on failure.
        failure: reason of the failure.
        explanation: the judge's words or the shared clues, for readers.
    """

    score: float | None
    failure: str | None = None
    explanation: str = ""


@dataclass(frozen=True)
class Extraction:
    """The emotion words that a judge extracted from one text.

    Attributes:
        words: distinct words in lower case; None on failure.
        failure: reason of the failure.
    """

    words: tuple[str, ...] | None
    failure: str | None = None


class JudgeUnreachable(UserError):
    """The judge does not answer: wrong address, wrong key, or only failures. Answers that arrived before are cached."""


class Judge(Protocol):
    """A judge, constructed as ``cls(cfg)``. The constructor checks settings (a key in the environment) but sends no request."""

    cfg: Any

    def __init__(self, cfg: Any) -> None: ...

    @property
    def name(self) -> str:
        """Name in tables: lexical, or the name of the model."""
        ...

    def clue_overlap(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Score for each (reference, prediction) how much of the reference's evidence for the emotion the prediction shares."""
        ...

    def emotion_words(self, texts: Sequence[str]) -> list[Extraction]:
        """Extract the emotions that each text ascribes to the person."""
        ...

    def label_overlap(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Verdict]:
        """Score for each (emotion words of the reference, of the prediction) how far they agree."""
        ...

    def usage(self) -> dict[str, Any]:
        """Return the usage so far: at least ``calls`` and ``cached`` (answers from the cache)."""
        ...

"""What a judge offers. Texts come in lists, so that a judge may ask about several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from emollama.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """A judge's answer about one pair.

    Attributes:
        score: 0 to 10; None where there is no usable answer.
        failure: why there is none.
        explanation: the judge's words or the shared evidence, for the reader.
    """

    score: float | None
    failure: str | None = None
    explanation: str = ""


@dataclass(frozen=True)
class Extraction:
    """The emotion words that a judge found in one text, lower case, without repetition; None with the reason of a failure."""

    words: tuple[str, ...] | None
    failure: str | None = None


class JudgeUnreachable(UserError):
    """No judge answers: wrong address, wrong key, or nothing but failures. What was answered so far is kept."""


class Judge(Protocol):
    """Built as ``cls(cfg)``; building one asks nobody anything, but checks what can be checked (a key in the environment)."""

    cfg: Any

    @property
    def name(self) -> str:
        """How tables call it: lexical, or the model's name."""
        ...

    def clue_overlap(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """For each (truth, prediction): how much of the truth's evidence for the emotion the prediction shares."""
        ...

    def emotion_words(self, texts: Sequence[str]) -> list[Extraction]:
        """The emotions that each text ascribes to the person."""
        ...

    def label_overlap(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Verdict]:
        """For each (truth's emotion words, prediction's): how far they agree."""
        ...

    def usage(self) -> dict[str, Any]:
        """What judging took so far: at least ``calls`` and ``cached`` (answers known from before)."""
        ...

"""``lexical``: the embedded judge, which compares surface words. Deterministic, offline, free.

Clue overlap is the F1 of the two descriptions' weighted content words; label overlap is the F1 of the families of their emotion
words on a small wheel. It is there to see whether a run learns at all, and to choose among its checkpoints.

What it cannot do: it knows English words only, and no meaning. A paraphrase in other words earns nothing, "no smile" and "smile"
share a clue, a clue that is given to the wrong person counts, long descriptions share words by chance, and of denials it sees
only those that stand before the emotion word in its clause. Its scores are not comparable with those of a language model, nor
with published tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emollama.evaluation.judges.judge import Extraction, Verdict
from emollama.evaluation.judges.text_rules import clues, emotion_words, weight
from emollama.evaluation.judges.wheel import FAMILY, nearness


class LexicalJudge:
    """Judges by words alone; see the module for what that is worth."""

    @dataclass
    class Config:
        """No keys."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    @property
    def name(self) -> str:
        """What tables call it."""
        return "lexical"

    def clue_overlap(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Twice the weight of the shared clues over the weight of both descriptions' clues, times 10.

        Emotion words are no clues: the label overlap judges them. A truth without a clue gives no score.
        """
        return [_clue_overlap(*pair) for pair in pairs]

    def emotion_words(self, texts: Sequence[str]) -> list[Extraction]:
        """The wheel's words in each text that it does not deny."""
        return [Extraction(emotion_words(text)) for text in texts]

    def label_overlap(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Verdict]:
        """F1 of families, times 10: 10 for the same families, half for neighbours, 0 for strangers or where one side has none.

        Words that are not on the wheel match as equal strings. Two empty sides give no score: there is nothing to compare.
        """
        return [_label_overlap(*pair) for pair in pairs]

    def usage(self) -> dict[str, Any]:
        """Nobody is asked."""
        return {"calls": 0, "cached": 0}


def _clue_overlap(truth: str, prediction: str) -> Verdict:
    true, predicted = clues(truth), clues(prediction)
    if not true:
        return Verdict(None, "there is no English clue in the truth")
    shared = [found for found in true if found in predicted]
    total = sum(map(weight, true)) + sum(map(weight, predicted))
    return Verdict(10 * 2 * sum(map(weight, shared)) / total, explanation="shared: " + ", ".join(true[found] for found in shared))


def _label_overlap(truth: Sequence[str], prediction: Sequence[str]) -> Verdict:
    true, predicted = _families(truth), _families(prediction)
    if not true and not predicted:
        return Verdict(None, "there is no emotion word on either side")
    explanation = f"{', '.join(sorted(true)) or 'nothing'} against {', '.join(sorted(predicted)) or 'nothing'}"
    precision, recall = _covered(predicted, true), _covered(true, predicted)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Verdict(10 * f1, explanation=explanation)


def _covered(families: set[str], others: set[str]) -> float:
    """Mean nearness of each family to the nearest of the others; 0 where either side is empty."""
    if not families or not others:
        return 0.0
    return sum(max(nearness(family, other) for other in others) for family in families) / len(families)


def _families(words: Sequence[str]) -> set[str]:
    """The families of label words; a phrase has those of its words, and what is not on the wheel stands for itself."""
    families: set[str] = set()
    for word in (word.strip().lower() for word in words):
        families |= {FAMILY[found] for found in emotion_words(word)} or ({word} if word else set())
    return families

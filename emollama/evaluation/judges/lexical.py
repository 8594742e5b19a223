"""``lexical``: the built-in judge, which compares the words of two texts. It is deterministic and needs no network.

Clue overlap is the F1 of the weighted content words of the two descriptions; label overlap is the F1 of the families of their
emotion words on a small wheel. The scores show whether a model learns at all and help to select a checkpoint.

Limitations: it only supports English and does not interpret meaning. A paraphrase in other words earns nothing, "no smile" and
"smile" share a clue, a clue about the wrong person counts, long descriptions share words by chance, and of negations it only
recognizes those in front of the emotion word within its clause. The scores are not comparable with those of a language model or
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
    """Compares words; the docstring of the module lists the limitations."""

    @dataclass
    class Config:
        """The lexical judge has no keys."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    @property
    def name(self) -> str:
        """Name in tables."""
        return "lexical"

    def clue_overlap(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return twice the weight of the shared clues, divided by the weight of all clues of both descriptions, times 10.

        Emotion words are not clues: label overlap compares them. A reference without clues gives no score.
        """
        return [_clue_overlap(*pair) for pair in pairs]

    def emotion_words(self, texts: Sequence[str]) -> list[Extraction]:
        """Return the words of the wheel that each text contains and does not negate."""
        return [Extraction(emotion_words(text)) for text in texts]

    def label_overlap(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Verdict]:
        """Return the F1 of families, times 10; neighbouring families count half, and an empty side gives 0.

        Words that are not on the wheel only match equal words. If both sides are empty, there is no score.
        """
        return [_label_overlap(*pair) for pair in pairs]

    def usage(self) -> dict[str, Any]:
        """Return zero counts, because no requests are sent."""
        return {"calls": 0, "cached": 0}


def _clue_overlap(reference: str, prediction: str) -> Verdict:
    reference_clues, predicted = clues(reference), clues(prediction)
    if not reference_clues:
        return Verdict(None, "the reference has no English clues")
    shared = [clue for clue in reference_clues if clue in predicted]
    total = sum(map(weight, reference_clues)) + sum(map(weight, predicted))
    explanation = "shared: " + ", ".join(reference_clues[clue] for clue in shared)
    return Verdict(10 * 2 * sum(map(weight, shared)) / total, explanation=explanation)


def _label_overlap(reference: Sequence[str], prediction: Sequence[str]) -> Verdict:
    reference_families, predicted = _families(reference), _families(prediction)
    if not reference_families and not predicted:
        return Verdict(None, "neither side has emotion words")
    explanation = f"{', '.join(sorted(reference_families)) or 'nothing'} against {', '.join(sorted(predicted)) or 'nothing'}"
    precision, recall = _covered(predicted, reference_families), _covered(reference_families, predicted)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Verdict(10 * f1, explanation=explanation)


def _covered(families: set[str], others: set[str]) -> float:
    """Return the mean nearness of each family to the nearest of the others; 0 if either side is empty."""
    if not families or not others:
        return 0.0
    return sum(max(nearness(family, other) for other in others) for family in families) / len(families)


def _families(words: Sequence[str]) -> set[str]:
    """Return the families of label words; a phrase has those of its words, and a word not on the wheel is its own family."""
    families: set[str] = set()
    for word in (word.strip().lower() for word in words):
        families |= {FAMILY[part] for part in emotion_words(word)} or ({word} if word else set())
    return families

"""EW metrics: emotion words are compared by their positions on emotion wheels.

Source: the scorer published for MER2025 track 2 and MER-UniBench (MERTools, MER2025_Track23, evaluation/wheel.py).

A word belongs to at most one cluster of each wheel (:mod:`emollama.evaluation.wheel_files`). Words without a cluster are dropped.
On each wheel, samples whose reference is then empty are left out, and a prediction that is then empty scores 0 for precision and
recall. Precision and recall are averaged over samples; F is the harmonic mean of these two means, or 0 if both are 0 (the
published scorer gives NaN). Each of the three is then averaged over the wheels that contain words of at least one reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from emollama.evaluation.metrics import Metric
from emollama.evaluation.openset import WordSets, word_sets
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.resources import ScoringResources
from emollama.evaluation.wheel_files import Clusters, Wheels


@dataclass(frozen=True)
class WheelSets(WordSets):
    """Clusters of the reference and of the prediction of each sample."""

    references: tuple[Clusters, ...]
    predicted: tuple[Clusters, ...]

    @classmethod
    def of(
        cls, names: Sequence[str], reference_words: Sequence[Sequence[str]], predicted_words: Sequence[Sequence[str]],
        wheels: Wheels,
    ) -> Self:  # fmt: skip
        """Look up the words of each sample on the wheels."""
        return cls(tuple(names), tuple(map(wheels.of, reference_words)), tuple(map(wheels.of, predicted_words)))

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: reference words, or the wheels."""
        wheels = None if resources.wheels else f"{resources.spelling.name('wheel_folder')}, the emotion wheels"
        return super().missing(resources, task) or wheels

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Extract the words of the predictions for samples that have reference words, and look them up on the wheels."""
        assert resources.wheels is not None
        return cls.of(*word_sets(predictions, resources), resources.wheels)

    def scored(self) -> Self:
        """Return the samples whose reference has a word on a wheel."""
        return self.take([index for index, wheels in enumerate(self.references) if any(wheels)])


def _scores(sets: WheelSets) -> list[tuple[float, float, float]]:
    """Return precision, recall and F on each wheel that contains words of at least one reference."""
    scores = []
    # From one tuple per sample to one tuple per wheel.
    for references, predictions in zip(zip(*sets.references, strict=True), zip(*sets.predicted, strict=True), strict=True):
        pairs = [(reference, predicted) for reference, predicted in zip(references, predictions, strict=True) if reference]
        if pairs:
            precision = sum(len(reference & predicted) / max(len(predicted), 1) for reference, predicted in pairs) / len(pairs)
            recall = sum(len(reference & predicted) / len(reference) for reference, predicted in pairs) / len(pairs)
            both = precision + recall
            scores.append((precision, recall, 2 * precision * recall / both if both else 0.0))
    return scores


def _mean(column: int) -> Callable[[WheelSets], float | None]:
    def compute(sets: WheelSets) -> float | None:
        values = [scores[column] for scores in _scores(sets)]
        return sum(values) / len(values) if values else None

    return compute


EW_PRECISION = Metric("precision on emotion wheels", "wheel_sets", _mean(0))
EW_RECALL = Metric("recall on emotion wheels", "wheel_sets", _mean(1))
EW = Metric("F on emotion wheels (EW)", "wheel_sets", _mean(2))

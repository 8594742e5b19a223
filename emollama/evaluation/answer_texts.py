"""The predictions themselves as a metric input, for metrics of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from emollama.evaluation.metrics import MetricInput
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.resources import ScoringResources


@dataclass(frozen=True)
class AnswerTexts(MetricInput):
    """The predictions of any task, one per sample: answer, reference and loss."""

    predictions: tuple[Prediction, ...]

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Return all predictions."""
        return cls(tuple(prediction.name for prediction in predictions), tuple(predictions))

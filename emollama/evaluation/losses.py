"""The validation loss as a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from emollama.evaluation.metrics import Metric, MetricInput
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.resources import ScoringResources


@dataclass(frozen=True)
class Losses(MetricInput):
    """Mean cross-entropy of each sample's target, in nats per token; samples without a target are not included."""

    values: tuple[float, ...]

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: losses."""
        return None if "loss" in resources.tasks[task] else "samples with a target answer, and prompt_layout: train"

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Return the losses that the predictions contain."""
        losses = [(prediction.name, prediction.loss) for prediction in predictions if prediction.loss is not None]
        return cls(tuple(name for name, _ in losses), tuple(loss for _, loss in losses))


def _mean(losses: Losses) -> float | None:
    mean = sum(losses.values) / len(losses.values) if losses.values else math.inf
    return mean if math.isfinite(mean) else None


LOSS = Metric("loss", "losses", _mean, higher_is_better=False, max_value=None)

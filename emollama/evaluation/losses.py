"""The validation loss as a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from emollama.evaluation.metrics import Metric


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy of each sample's target, in nats per token; samples without a target are not included."""

    names: tuple[str, ...]
    values: tuple[float, ...]

    def take(self, indices: Sequence[int]) -> Self:
        """Return the losses at these indices."""
        return type(self)(tuple(self.names[i] for i in indices), tuple(self.values[i] for i in indices))


def _mean(losses: Losses) -> float | None:
    mean = sum(losses.values) / len(losses.values) if losses.values else math.inf
    return mean if math.isfinite(mean) else None


LOSS = Metric("loss", Losses, _mean, higher_is_better=False, max_value=None)

"""What a metric is: a figure computed from one kind of evidence about a set of answers.

Evidence is a frozen object per task of a block (losses, labels read out of answers, judgements, sets of words). It can be
cut to some of its clips (:meth:`MetricInput.take`), which is all that a bootstrap needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from emollama.registry import METRICS


class MetricInput(Protocol):
    """What metrics are computed from: one entry a clip."""

    @property
    def names(self) -> tuple[str, ...]:
        """The clips."""
        ...

    def take(self, places: Sequence[int]) -> Self:
        """The same evidence about the clips at these places; a place may repeat."""
        ...


@dataclass(frozen=True)
class Metric:
    """A figure. Registered in METRICS by its name.

    Attributes:
        title: as tables show it.
        evidence: class of the evidence that ``value`` takes.
        value: evidence -> the figure, never nan; None where there is nothing to compute it from.
        higher_is_better: whether more is better.
        top: the best (or, for what is better when small, None) value of the scale: 1 for shares, 10 for judges' points.
    """

    title: str
    evidence: type
    value: Callable[[Any], float | None]
    higher_is_better: bool = True
    top: float | None = 1.0

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is strictly better than ``other``."""
        return one > other if self.higher_is_better else one < other


def metric(name: str) -> Metric:
    """The metric registered under a name.

    Raises:
        UserError: none is.
    """
    found: Metric = METRICS.get(name, "metric")
    return found

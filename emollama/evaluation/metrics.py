"""The interface of metrics: a metric is a number that is computed from a metric input.

A metric input is a frozen object with data about the samples of one task (losses, extracted labels, verdicts, sets of words). It
can be restricted to some of its samples (:meth:`MetricInput.take`); the bootstrap needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from emollama.registry import METRICS


class MetricInput(Protocol):
    """The data from which metrics are computed, one entry per sample."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the samples."""
        ...

    def take(self, indices: Sequence[int]) -> Self:
        """Return the entries of the samples at these indices; an index may repeat."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric. It is registered in METRICS by its name.

    Attributes:
        title: name of the metric in tables and plots.
        input_type: class of the metric input that ``compute`` takes.
        compute: function from the metric input to the value, never NaN; None if the value is undefined, as for no samples.
        higher_is_better: whether larger values are better.
        max_value: upper end of the scale: 1 for fractions, 10 for a judge's scores; None without an upper limit, or if lower is
            better.
    """

    title: str
    input_type: type
    compute: Callable[[Any], float | None]
    higher_is_better: bool = True
    max_value: float | None = 1.0

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value is strictly better than another one."""
        return value > than if self.higher_is_better else value < than


def metric(name: str) -> Metric:
    """Return the metric that is registered under a name.

    Raises:
        UserError: If no metric has this name.
    """
    registered: Metric = METRICS.get(name, "metric")
    return registered

"""Bootstrap confidence intervals over samples, for one set of predictions and for paired comparisons of two sets.

Samples are drawn with replacement, as many as there are, and the metric is computed for each resample; intervals are the central
95% of these values (percentile bootstrap). A paired comparison uses the same resamples for both sets of predictions, of the
samples that both have scores for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emollama.errors import UserError
from emollama.evaluation.metrics import MetricInput, metric, metric_value, scored_samples, take
from emollama.evaluation.scoring import TaskScores

PERCENTILES = (2.5, 97.5)  # ends of a 95% interval
MIN_RESAMPLES = 100  # for percentiles of this precision
Values = NDArray[np.float64]  # (resamples,), NaN for a resample in which the metric is undefined


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap.

    Attributes:
        resamples: number of resamples; 0 for no intervals.
        seed: seed of the resamples; the same seed gives the same intervals.

    Raises:
        UserError: If there are too few resamples for an interval, or the seed is negative.
    """

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples != 0 and self.resamples < MIN_RESAMPLES:
            expected = f"expected at least {MIN_RESAMPLES} for a 95% interval, or 0 for no intervals"
            raise UserError(f"--resamples: {expected}, got {self.resamples}")
        if self.seed < 0:
            raise UserError(f"--seed: expected a number of at least 0, got {self.seed}")

    def indices(self, num_samples: int) -> NDArray[np.int64]:
        """Return the samples of each resample as indices, shape (resamples, num_samples)."""
        return np.random.default_rng(self.seed).integers(num_samples, size=(self.resamples, num_samples))


@dataclass(frozen=True)
class Estimate:
    """The value of a metric with its 95% interval.

    Attributes:
        value: value over all samples that have a score.
        low: lower end of the interval; None without an interval, as for fewer than two samples.
        high: upper end of the interval; None without an interval.
        num_samples: number of samples that have a score.
    """

    value: float | None
    low: float | None
    high: float | None
    num_samples: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as ``scores.json`` contains them; there, the number of samples is called ``clips``."""
        return {"clips" if name == "num_samples" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Difference(Estimate):
    """The difference of a metric from that of the first set of predictions, over the samples that both have scores for.

    Attributes:
        p: two-sided p-value: twice the fraction of resamples on the rarer side of 0; None without an interval.
        at_most: whether p is the smallest value that so many resamples can show, so that the true one may be smaller.
    """

    p: float | None = None
    at_most: bool = False


@dataclass(frozen=True)
class PairedComparison:
    """Several sets of predictions for one task: set -> metric -> value. The first set has no differences."""

    estimates: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)


def compare(scores: Mapping[str, TaskScores], resampling: Resampling) -> PairedComparison:
    """Compute intervals of every metric for every set of predictions, and differences from the first set.

    Args:
        scores: set of predictions (a file) -> its scores of one task; the metrics of the first set are compared.
        resampling: settings of the bootstrap.

    Raises:
        ComponentFailed: If a metric or a metric input raised an exception or returned something unusable.
    """
    first, *others = scores
    comparison = PairedComparison({label: {} for label in scores}, {label: {} for label in others})
    for input_name in dict.fromkeys(metric(name).metric_input for name in scores[first].metrics):
        names = scores[first].metrics_of(input_name)
        sets = {
            label: _Resampled(scored_samples(task_scores.inputs[input_name]), names, resampling)
            for label, task_scores in scores.items()
        }
        for label, resampled in sets.items():
            comparison.estimates[label] |= {name: resampled.estimate(name) for name in names}
        for label in others:
            comparison.differences[label] |= {name: sets[label].difference(sets[first], name) for name in names}
    return comparison


class _Resampled:
    """Metrics of one metric input over resamples of its samples; each set of samples is computed once."""

    def __init__(self, metric_input: MetricInput, metrics: Sequence[str], resampling: Resampling) -> None:
        self._indices = {name: index for index, name in enumerate(metric_input.names)}
        self._input = metric_input
        self._metrics = metrics
        self._resampling = resampling
        self._computed: dict[tuple[str, ...], tuple[dict[str, float | None], dict[str, Values]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The samples in order of their names; resamples refer to this order."""
        return tuple(sorted(self._indices))

    def over(self, names: tuple[str, ...]) -> tuple[dict[str, float | None], dict[str, Values]]:
        """Return the value of each metric over these samples, and its values over resamples of them."""
        if names not in self._computed:
            subset = take(self._input, [self._indices[name] for name in names])
            whole = {name: metric_value(name, subset) for name in self._metrics}
            resamples = self._resampling.indices(len(names)).tolist() if names else []
            rows = [self._values(take(subset, indices)) for indices in resamples]
            columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(self._metrics)).T
            self._computed[names] = whole, dict(zip(self._metrics, columns, strict=True))
        return self._computed[names]

    def _values(self, resample: MetricInput) -> list[float]:
        values = [metric_value(name, resample) for name in self._metrics]
        return [np.nan if value is None else value for value in values]

    def estimate(self, name: str) -> Estimate:
        """Return a metric over all samples."""
        whole, resampled = self.over(self.names)
        return Estimate(whole[name], *_interval(resampled[name], len(self.names)), len(self.names))

    def difference(self, first: _Resampled, name: str) -> Difference:
        """Return the difference of a metric from that of the first set, over the samples that both sets have."""
        common = tuple(sorted(self._indices.keys() & first._indices.keys()))
        (whole, resampled), (first_whole, first_resampled) = self.over(common), first.over(common)
        value, first_value = whole[name], first_whole[name]
        if value is None or first_value is None:
            return Difference(None, None, None, len(common))
        differences = resampled[name] - first_resampled[name]
        low, high = _interval(differences, len(common))
        return Difference(value - first_value, low, high, len(common), *((None, False) if low is None else _p_value(differences)))


def _interval(values: Values, num_samples: int) -> tuple[float | None, float | None]:
    values = values[~np.isnan(values)]
    if num_samples < 2 or not len(values):
        return None, None
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def _p_value(differences: Values) -> tuple[float, bool]:
    """Return p, and whether no resample is on the rarer side of 0."""
    differences = differences[~np.isnan(differences)]
    # A resample with difference 0 counts on both sides. One is added to both counts, so p is never 0.
    rarer = int(min((differences <= 0).sum(), (differences >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(differences))), rarer == 0

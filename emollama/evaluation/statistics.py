"""How sure a figure is: the bootstrap over clips, for one set of answers and for two that are compared clip by clip.

Clips are drawn with replacement, as many as there are, and the metric is computed anew; intervals are the central 95% of these
values (percentile bootstrap). Two sets of answers are compared on the same draws of the clips that both have scores for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emollama.errors import UserError
from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps
from emollama.evaluation.metrics import MetricInput, metric
from emollama.evaluation.openset import OpenSets
from emollama.evaluation.scoring import TaskScores
from emollama.evaluation.wheels import WheelSets

COVERED = (2.5, 97.5)  # percentiles
FEWEST = 100  # resamples from which such percentiles can be read
Values = NDArray[np.float64]  # (resamples,), nan where a draw has nothing to compute the metric from


@dataclass(frozen=True)
class Resampling:
    """How clips are drawn.

    Attributes:
        resamples: how often; 0 for no intervals.
        seed: of the draws; equal seeds give equal intervals.

    Raises:
        UserError: too few resamples for an interval, or a negative seed.
    """

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples != 0 and self.resamples < FEWEST:
            raise UserError(f"--resamples: {self.resamples}; a 95% interval needs at least {FEWEST}, or 0 for none")
        if self.seed < 0:
            raise UserError(f"--seed: {self.seed}; it must be at least 0")

    def draws(self, clips: int) -> NDArray[np.int64]:
        """Places of clips, shape (resamples, clips)."""
        return np.random.default_rng(self.seed).integers(clips, size=(self.resamples, clips))


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; None where there is none, as with fewer than two clips.

    Attributes:
        value: over all clips that have a score.
        low, high: ends of the interval.
        clips: how many have a score.
    """

    value: float | None
    low: float | None
    high: float | None
    clips: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A figure less that of the first set of answers, both over the clips that both have scores for.

    Attributes:
        p: two-sided: twice the share of draws on the rarer side of 0; None where there is no interval.
        at_most: whether p is the least that so many draws can tell, so that it may be smaller.
    """

    p: float | None = None
    at_most: bool = False


@dataclass(frozen=True)
class PairedComparison:
    """Sets of answers to one task side by side: set -> metric -> figure. The first set has no differences."""

    estimates: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)


def compare(scores: Mapping[str, TaskScores], resampling: Resampling) -> PairedComparison:
    """Intervals of every metric of every set of answers, and differences from the first set.

    Args:
        scores: set of answers (a file) -> its scores of one task; the metrics are those of the first.
        resampling: how clips are drawn.
    """
    first, *others = scores
    found = PairedComparison({label: {} for label in scores}, {label: {} for label in others})
    for kind in dict.fromkeys(metric(name).evidence for name in scores[first].metrics):
        names = [name for name in scores[first].metrics if metric(name).evidence is kind]
        sets = {label: _Resampled(scored(each.evidence[kind]), names, resampling) for label, each in scores.items()}
        for label, one in sets.items():
            found.estimates[label] |= {name: one.estimate(name) for name in names}
        for label in others:
            found.differences[label] |= {name: sets[label].less(sets[first], name) for name in names}
    return found


def scored(evidence: Any) -> Any:
    """The evidence about the clips that have a score: without those about which a judge failed or no true word is known."""
    if isinstance(evidence, ClueOverlaps | LabelOverlaps):
        known = [verdict.score is not None for verdict in evidence.verdicts]
    elif isinstance(evidence, OpenSets):
        known = [bool(words) for words in evidence.truth]
    elif isinstance(evidence, WheelSets):
        known = [any(wheels) for wheels in evidence.truth]
    else:
        return evidence
    return evidence.take([place for place, is_known in enumerate(known) if is_known])


class _Resampled:
    """Metrics of one kind of evidence, over draws of some of its clips; equal draws are computed once."""

    def __init__(self, evidence: MetricInput, metrics: Sequence[str], resampling: Resampling) -> None:
        self._places = {name: place for place, name in enumerate(evidence.names)}
        self._evidence = evidence
        self._metrics = {name: metric(name) for name in metrics}
        self._resampling = resampling
        self._known: dict[tuple[str, ...], tuple[dict[str, float | None], dict[str, Values]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The clips in order of their names, which is the order that draws refer to."""
        return tuple(sorted(self._places))

    def over(self, names: tuple[str, ...]) -> tuple[dict[str, float | None], dict[str, Values]]:
        """metric -> its value over these clips, and metric -> its values over draws of them."""
        if names not in self._known:
            cut = self._evidence.take([self._places[name] for name in names])
            whole = {name: found.value(cut) for name, found in self._metrics.items()}
            rows = [self._values(cut.take(places)) for places in self._resampling.draws(len(names)).tolist()] if names else []
            columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(self._metrics)).T
            self._known[names] = whole, dict(zip(self._metrics, columns, strict=True))
        return self._known[names]

    def _values(self, drawn: MetricInput) -> list[float]:
        values = [found.value(drawn) for found in self._metrics.values()]
        return [np.nan if value is None else value for value in values]

    def estimate(self, name: str) -> Estimate:
        """A metric over all clips."""
        whole, draws = self.over(self.names)
        return Estimate(whole[name], *_interval(draws[name], len(self.names)), len(self.names))

    def less(self, first: _Resampled, name: str) -> Difference:
        """A metric less that of the first set, over the clips of both."""
        common = tuple(sorted(self._places.keys() & first._places.keys()))
        (whole, draws), (first_whole, first_draws) = self.over(common), first.over(common)
        one, other = whole[name], first_whole[name]
        if one is None or other is None:
            return Difference(None, None, None, len(common))
        apart = draws[name] - first_draws[name]
        low, high = _interval(apart, len(common))
        return Difference(one - other, low, high, len(common), *((None, False) if low is None else _p_value(apart)))


def _interval(values: Values, clips: int) -> tuple[float | None, float | None]:
    values = values[~np.isnan(values)]
    if clips < 2 or not len(values):
        return None, None
    low, high = np.percentile(values, COVERED)
    return float(low), float(high)


def _p_value(apart: Values) -> tuple[float, bool]:
    """p, and whether no draw lies on the rarer side; draws of 0 count on both, to each of which one is added: p is never 0."""
    apart = apart[~np.isnan(apart)]
    rarer = int(min((apart <= 0).sum(), (apart >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(apart))), rarer == 0

"""Agreement between raters: quadratic-weighted Cohen's kappa and Spearman's rank correlation.

Kappa is 1 for identical ratings and 0 for the agreement expected by chance; it decreases with the squared distance between two
ratings. The rank correlation ignores whether one rater is stricter than another. It only compares the order of the descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from emollama.evaluation.rating import SCALES, TOP, Ratings


@dataclass(frozen=True)
class Agreement:
    """The agreement of two raters on one scale.

    Attributes:
        raters: names of the two raters.
        scale: clue_overlap or label_overlap.
        items: number of descriptions that both rated.
        kappa: quadratic-weighted kappa of the ratings, rounded to integers; None if all ratings of both are the same number.
        spearman: rank correlation; None if one of them gave the same rating throughout.
    """

    raters: tuple[str, str]
    scale: str
    items: int
    kappa: float | None
    spearman: float | None


def agreements(ratings: Sequence[Ratings]) -> list[Agreement]:
    """Compute the agreement of every pair of raters on every scale, over the descriptions that both rated."""
    return [_agreement(first, second, scale) for scale in SCALES for first, second in combinations(ratings, 2)]


def _agreement(first: Ratings, second: Ratings, scale: str) -> Agreement:
    from scipy.stats import spearmanr
    from sklearn.metrics import cohen_kappa_score

    common = sorted(first.points[scale].keys() & second.points[scale].keys())
    pair = [np.array([ratings.points[scale][name] for name in common]) for ratings in (first, second)]
    rounded = [np.rint(points).astype(int) for points in pair]
    # Both statistics are undefined for constant ratings: their denominators are 0.
    kappa = spearman = None
    if len({*rounded[0].tolist(), *rounded[1].tolist()}) > 1:
        kappa = float(cohen_kappa_score(*rounded, labels=range(TOP + 1), weights="quadratic"))
    if min(len(set(points.tolist())) for points in pair) > 1:
        spearman = float(spearmanr(*pair).statistic)
    return Agreement((first.rater, second.rater), scale, len(common), kappa, spearman)

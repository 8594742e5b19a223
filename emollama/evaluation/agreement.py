"""How far raters agree: quadratic-weighted Cohen's kappa of whole points, and Spearman's rank correlation.

Kappa is 1 for equal points, 0 for what chance would give, and falls with the square of the distance. The rank correlation does
not care whether one rater is milder than another, only whether they put descriptions in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from emollama.evaluation.rating import SCALES, TOP, Ratings


@dataclass(frozen=True)
class Agreement:
    """Two raters on one scale.

    Attributes:
        raters: the two.
        scale: clue_overlap or label_overlap.
        items: how many both rated.
        kappa: quadratic-weighted, of points rounded to whole ones; None where both gave one and the same number throughout.
        spearman: None where one of them gave one number throughout.
    """

    raters: tuple[str, str]
    scale: str
    items: int
    kappa: float | None
    spearman: float | None


def agreements(ratings: Sequence[Ratings]) -> list[Agreement]:
    """Every pair of raters on every scale, over the items that both rated."""
    return [_agreement(one, other, scale) for scale in SCALES for one, other in combinations(ratings, 2)]


def _agreement(one: Ratings, other: Ratings, scale: str) -> Agreement:
    from scipy.stats import spearmanr
    from sklearn.metrics import cohen_kappa_score

    common = sorted(one.points[scale].keys() & other.points[scale].keys())
    first, second = (np.array([each.points[scale][name] for name in common]) for each in (one, other))
    whole = [np.rint(points).astype(int) for points in (first, second)]
    kappa = spearman = None
    if len({*whole[0].tolist(), *whole[1].tolist()}) > 1:
        kappa = float(cohen_kappa_score(*whole, labels=range(TOP + 1), weights="quadratic"))
    if min(len(set(points.tolist())) for points in (first, second)) > 1:
        spearman = float(spearmanr(first, second).statistic)
    return Agreement((one.rater, other.rater), scale, len(common), kappa, spearman)

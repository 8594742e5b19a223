"""Confidence intervals and paired differences: their properties on simulated scores."""

from __future__ import annotations

import numpy as np
import pytest

from emollama.errors import UserError
from emollama.evaluation.emer import ClueOverlaps
from emollama.evaluation.judges.judge import Verdict
from emollama.evaluation.losses import Losses
from emollama.evaluation.recognition import Labels
from emollama.evaluation.scoring import TaskScores
from emollama.evaluation.statistics import Resampling, compare

ONCE = Resampling(400, 0)


def losses(values, names=None):
    """Return scores whose only metric is a mean."""
    names = names or [f"clip_{index:04}" for index in range(len(values))]
    metric_input = Losses(tuple(names), tuple(map(float, values)))
    return TaskScores([], {"loss": float(np.mean(values)) if len(values) else None}, {"losses": metric_input}, {})


def judged(values):
    """Return scores of a judge; None means that it failed."""
    verdicts = tuple(Verdict(value, None if value is not None else "no digit") for value in values)
    names = tuple(f"clip_{index}" for index in range(len(values)))
    return TaskScores([], {"clue_overlap": None}, {"clue_overlaps": ClueOverlaps(names, verdicts)}, {})


def estimate(values, resampling=ONCE):
    return compare({"a": losses(values)}, resampling).estimates["a"]["loss"]


def difference(one, other, resampling=ONCE):
    """Return the difference of the second scores from the first."""
    return compare({"a": one, "b": other}, resampling).differences["b"]["loss"]


def noise(size, seed=1):
    return np.random.default_rng(seed).normal(size=size)


def test_the_interval_of_symmetric_data_is_symmetric_about_the_estimate():
    values = np.concatenate([noise(40), -noise(40)])
    interval = estimate(values)
    assert interval.low < interval.value < interval.high
    assert abs((interval.high - interval.value) - (interval.value - interval.low)) < 0.1 * (interval.high - interval.low)


def test_an_interval_shrinks_with_the_square_root_of_the_number_of_samples():
    widths = [interval.high - interval.low for interval in (estimate(noise(size)) for size in (50, 800))]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_interval_ends_are_percentiles_of_the_metric_over_the_resamples():
    values = noise(30)
    means = values[ONCE.indices(30)].mean(axis=1)
    interval = estimate(values)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)


@pytest.mark.slow
def test_intervals_cover_the_true_value_in_about_95_percent_of_cases():
    intervals = [estimate(noise(60, seed), Resampling(200, seed)) for seed in range(100)]
    assert 0.89 <= np.mean([interval.low <= 0 <= interval.high for interval in intervals]) <= 0.98


@pytest.mark.slow
def test_without_a_true_difference_p_is_below_5_percent_in_about_5_percent_of_cases():
    pairs = [(losses(noise(60, seed)), losses(noise(60, 1000 + seed))) for seed in range(100)]
    differences = [difference(*pair, Resampling(200, seed)) for seed, pair in enumerate(pairs)]
    assert 0.01 <= np.mean([each.p < 0.05 for each in differences]) <= 0.11


def test_equal_seeds_give_equal_intervals_and_different_seeds_give_different_ones():
    values = noise(50)
    assert estimate(values, Resampling(200, 3)) == estimate(values, Resampling(200, 3))
    assert estimate(values, Resampling(200, 3)) != estimate(values, Resampling(200, 4))


def test_the_difference_of_a_set_from_itself_is_zero_with_p_equal_to_one():
    result = difference(losses(noise(50)), losses(noise(50)))
    assert (result.value, result.low, result.high, result.p, result.num_samples) == (0, 0, 0, 1, 50)


def test_both_sides_of_a_difference_are_resampled_with_the_same_samples_in_any_order():
    values = noise(50)
    names = [f"clip_{index}" for index in range(50)]
    turned = np.random.default_rng(0).permutation(50)
    result = difference(losses(values, names), losses(values[turned], [names[index] for index in turned]))
    assert (result.low, result.high) == pytest.approx((0, 0), abs=1e-12)


def test_a_paired_difference_is_detected_although_the_intervals_overlap():
    one = noise(50)
    other = one + 0.2 + 0.1 * noise(50, 2)
    first, second = estimate(one), estimate(other)
    result = difference(losses(one), losses(other))
    assert second.low < first.high
    assert result.p < 0.01 and 0 < result.low < result.value < result.high


def test_a_difference_uses_only_the_common_samples_in_any_order():
    one = losses([1, 2, 3, 4], ["a", "b", "c", "d"])
    other = losses([5, 13, 40], ["d", "c", "x"])
    result = difference(one, other)
    assert (result.value, result.num_samples) == (pytest.approx((1 + 10) / 2), 2)


def test_samples_with_a_failed_judgement_are_excluded_on_both_sides():
    comparison = compare({"a": judged([1, 2, 9, None]), "b": judged([3, 4, None, 8])}, ONCE)
    assert [comparison.estimates[label]["clue_overlap"].value for label in "ab"] == [4, 5]
    assert [comparison.estimates[label]["clue_overlap"].num_samples for label in "ab"] == [3, 3]
    result = comparison.differences["b"]["clue_overlap"]
    assert (result.value, result.num_samples) == (2, 2)


@pytest.mark.parametrize("clips", [0, 1])
def test_fewer_than_two_samples_give_no_interval_and_no_p_value(clips):
    values = [2.0] * clips
    interval = estimate(values)
    assert (interval.value, interval.low, interval.high) == (2.0 if clips else None, None, None)
    apart = difference(losses(values), losses(values))
    assert (apart.value, apart.low, apart.p) == (0 if clips else None, None, None)


def test_without_common_samples_there_is_no_difference():
    result = difference(losses([1, 2], ["a", "b"]), losses([3, 4], ["c", "d"]))
    assert (result.value, result.low, result.p, result.num_samples) == (None, None, None, 0)


def test_without_resamples_there_are_no_intervals_and_no_p_values():
    interval = estimate([1, 2, 3], Resampling(0))
    assert (interval.value, interval.low, interval.high) == (2, None, None)
    assert difference(losses([1, 2]), losses([2, 4]), Resampling(0)).p is None


def test_several_metrics_of_one_kind_use_the_same_resamples():
    rng = np.random.default_rng(0)
    labels = ("happy", "sad", "angry")
    truth, read = (tuple(labels[index] for index in rng.integers(3, size=40)) for _ in range(2))
    metric_input = Labels(tuple(map(str, range(40))), truth, read, tuple(frozenset({one}) for one in read), labels)
    names = ("war", "hit_rate", "recall")
    estimates = compare({"a": TaskScores([], dict.fromkeys(names), {"labels": metric_input}, {})}, Resampling(100)).estimates["a"]
    right = np.mean([one == other for one, other in zip(truth, read, strict=True)])
    for name in names:  # the three are equal if each answer has one label
        assert (estimates[name].value, estimates[name].low, estimates[name].high) == pytest.approx(
            (right, estimates["war"].low, estimates["war"].high), abs=1e-12
        )


@pytest.mark.parametrize(
    ("resamples", "seed", "expected"), [(99, 0, "at least 100"), (-1, 0, "at least 100"), (100, -1, "--seed")]
)
def test_invalid_resampling_settings_are_refused(resamples, seed, expected):
    with pytest.raises(UserError, match=expected):
        Resampling(resamples, seed)

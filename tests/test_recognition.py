"""Recognition metrics: published values, scikit-learn's results for random answers, and edge cases."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from emollama.errors import UserError
from emollama.evaluation.labels import LabelReader
from emollama.evaluation.metrics import metric
from emollama.evaluation.recognition import Labels, confusion, per_class

pytestmark = pytest.mark.filterwarnings("error")
SIX = ("angry", "happy", "neutral", "sad", "surprise", "worried")
NAMES = ("war", "waf", "uar", "macro_f1", "precision", "recall", "hit_rate", "invalid_rate")
FIRST = """179 1 2 1 0 0 / 2 152 7 4 3 1 / 10 10 134 6 2 4 / 2 2 1 250 0 2 / 1 0 3 1 6 3 / 4 1 3 2 1 34"""
SECOND = """172 1 6 2 0 2 / 0 154 10 3 1 1 / 7 11 135 5 1 7 / 1 4 1 248 0 3 / 1 0 1 3 5 4 / 4 1 3 6 0 31"""


def evidence(truth, read, labels=SIX, named=None):
    named = [frozenset({label} - {None}) for label in read] if named is None else named
    names = tuple(f"clip_{i}" for i in range(len(truth)))
    return Labels(names, tuple(truth), tuple(read), tuple(named), tuple(labels))


def value(name, labels):
    return metric(name).compute(labels)


def answered(matrix):
    """Return (truth, answer) for each clip in a confusion matrix."""
    counts = [[int(cell) for cell in row.split()] for row in matrix.split("/")]
    return [(SIX[i], SIX[j]) for i, row in enumerate(counts) for j, count in enumerate(row) for _ in range(count)], counts


@pytest.mark.parametrize(
    ("matrix", "war", "waf"), [(FIRST, 0.9052757793764988, 0.9035772132511264), (SECOND, 0.8932853717, 0.8912298847)]
)
def test_published_confusion_matrices_give_the_published_accuracy_and_weighted_f1(matrix, war, waf):
    pairs, counts = answered(matrix)
    reader = LabelReader(SIX, {})
    readings = [reader.read(f"The person is {answer}.") for _, answer in pairs]
    labels = evidence([true for true, _ in pairs], [reading.label for reading in readings], named=[r.mentioned for r in readings])
    assert value("war", labels) == pytest.approx(war, abs=1e-9)
    assert value("recall", labels) == pytest.approx(war, abs=1e-9)
    assert value("waf", labels) == pytest.approx(waf, abs=1e-9)
    assert value("hit_rate", labels) == value("war", labels)
    assert value("invalid_rate", labels) == 0
    assert confusion(labels) == [[*row, 0] for row in counts]


def random_answers(seed):
    """Return true and parsed labels with invalid answers, unused labels, and sometimes a single class."""
    rng = np.random.default_rng(seed)
    clips = int(rng.integers(1, 60))
    true = rng.choice(SIX, size=int(rng.integers(1, 7)), replace=False)
    answers = [*rng.choice(SIX, size=int(rng.integers(1, 7)), replace=False), None]
    truth = [str(label) for label in rng.choice(true, size=clips)]
    read = [answers[i] and str(answers[i]) for i in rng.integers(0, len(answers), size=clips)]
    return truth, [true if rng.random() < 0.4 else label for true, label in zip(truth, read, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_metrics_equal_those_of_scikit_learn_with_invalid_answers_as_a_separate_class(seed):
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

    truth, read = random_answers(seed)
    labels, classes = evidence(truth, read), [label or "(invalid)" for label in read]
    occurring = sorted(set(truth))
    same = {
        "war": accuracy_score(truth, classes),
        "waf": f1_score(truth, classes, average="weighted", zero_division=0),
        "precision": precision_score(truth, classes, average="weighted", zero_division=0),
        "recall": recall_score(truth, classes, average="weighted", zero_division=0),
        "uar": recall_score(truth, classes, labels=occurring, average="macro", zero_division=0),
        "macro_f1": f1_score(truth, classes, labels=occurring, average="macro", zero_division=0),
        "invalid_rate": read.count(None) / len(read),
    }
    for name, expected in same.items():
        assert value(name, labels) == pytest.approx(float(expected), abs=1e-12), name
    assert confusion(labels) == confusion_matrix(truth, classes, labels=[*SIX, "(invalid)"]).tolist()[:-1]
    for row in per_class(labels):
        of_class = {"labels": [row["label"]], "average": "macro", "zero_division": 0}
        assert row["support"] == truth.count(row["label"])
        assert row["precision"] == pytest.approx(float(precision_score(truth, classes, **of_class)))
        assert row["recall"] == pytest.approx(float(recall_score(truth, classes, **of_class)))
        assert row["f1"] == pytest.approx(float(f1_score(truth, classes, **of_class)))


def test_uar_is_scikit_learns_balanced_accuracy():
    from sklearn.metrics import balanced_accuracy_score

    for seed in range(20):
        truth, read = random_answers(seed)
        with warnings.catch_warnings(action="ignore"):  # it warns about answered labels that no clip has
            balanced = balanced_accuracy_score(truth, [label or "(invalid)" for label in read])
        assert value("uar", evidence(truth, read)) == pytest.approx(float(balanced))


def test_the_random_answers_of_these_tests_cover_all_special_cases():
    drawn = [random_answers(seed) for seed in range(40)]
    assert any(None in read for _, read in drawn)
    assert any(len(set(truth)) == 1 for truth, _ in drawn)
    assert any({*read} - {*truth, None} for truth, read in drawn)
    assert any({*truth} - {*read} for truth, read in drawn)


def test_metrics_equal_manual_values_with_an_invalid_answer_and_an_unused_label():
    labels = evidence(["happy", "happy", "sad", "sad"], ["happy", None, "angry", "sad"], ("happy", "sad", "angry"))
    assert value("war", labels) == 0.5
    assert value("uar", labels) == 0.5
    assert value("precision", labels) == 1.0
    assert value("waf", labels) == value("macro_f1", labels) == pytest.approx(2 / 3)  # angry does not count
    assert value("invalid_rate", labels) == 0.25
    assert confusion(labels) == [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert per_class(labels)[2] == {"label": "angry", "support": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_scores_are_zero_if_all_answers_are_invalid():
    labels = evidence(["happy", "sad"], [None, None])
    assert [value(name, labels) for name in NAMES] == [0, 0, 0, 0, 0, 0, 0, 1]


def test_hit_rate_counts_a_true_label_among_the_named_labels_of_an_invalid_answer():
    both = frozenset({"happy", "sad"})
    labels = evidence(["happy", "sad", "happy", "sad"], [None, None, "sad", None], named=[both, both, {"sad"}, set()])
    assert value("hit_rate", labels) == 0.5
    assert value("war", labels) == 0


@pytest.mark.parametrize("labels", [SIX, ("happy",), ()])
def test_metrics_of_no_samples_are_none(labels):
    nothing = evidence([], [], labels)
    assert [value(name, nothing) for name in NAMES] == [None] * 8
    assert confusion(nothing) == [[0] * (len(labels) + 1) for _ in labels]
    assert [row["support"] for row in per_class(nothing)] == [0] * len(labels)


def test_metrics_are_finite_and_between_zero_and_one():
    for seed in range(40):
        labels = evidence(*random_answers(seed))
        figures = [value(name, labels) for name in NAMES]
        figures += [row[key] for row in per_class(labels) for key in ("precision", "recall", "f1")]
        assert all(type(figure) is float and math.isfinite(figure) and 0 <= figure <= 1 for figure in figures)


def test_the_case_of_true_labels_is_ignored():
    labels = evidence(["Happy", "SAD"], ["happy", "sad"])
    assert labels.references == ("happy", "sad")
    assert value("war", labels) == 1.0


def test_an_unknown_true_label_is_an_error_with_its_sample_and_the_nearest_label():
    with pytest.raises(UserError) as error:
        evidence(["happy", "surprised"], ["happy", None])
    assert "the true label of 'clip_1' is 'surprised'" in str(error.value)
    assert "Did you mean 'surprise'?" in str(error.value)


def test_take_selects_clips_with_their_answers_and_may_repeat_them():
    labels = evidence(["happy", "sad", "angry"], ["happy", None, "sad"])
    taken = labels.take([2, 0, 2])
    assert taken.names == ("clip_2", "clip_0", "clip_2") and taken.references == ("angry", "happy", "angry")
    assert taken.predicted == ("sad", "happy", "sad") and taken.mentioned[0] == {"sad"} and taken.labels == labels.labels
    assert value("war", taken) == pytest.approx(1 / 3)


def test_the_invalid_rate_is_the_only_metric_where_lower_is_better():
    assert [name for name in NAMES if not metric(name).higher_is_better] == ["invalid_rate"]

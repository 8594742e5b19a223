"""Metrics of recognition: answers as labels, against the true ones. Computed by scikit-learn.

An invalid answer counts as wrong: as a class of its own, which is no label. WAF is the F1 of the classes weighted by their clips,
WAR the accuracy, UAR the mean of the classes' recalls; these, and weighted precision and recall, are what the challenges MER2023
and MER2024, the benchmark DFEW and the evaluation published with Emotion-LLaMA report.

Means over classes (UAR, macro F1) are over the labels that occur in the truth: a label that no clip has neither helps nor hurts,
even where some answer is that label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from emollama.errors import UserError
from emollama.evaluation.metrics import Metric
from emollama.listing import abbreviated
from emollama.registry import did_you_mean

INVALID = -1  # the class of invalid answers, beside places in the labels
_PRECISION, _RECALL, _F1, _SUPPORT = range(4)


@dataclass(frozen=True)
class Labels:
    """True labels and what was read out of the answers.

    Attributes:
        names: the clips.
        truth: their true labels; written in another case than in ``labels``, they are respelled.
        read: the answers' labels; None where the answer is invalid.
        named: all labels that each answer names.
        labels: the labels, in the order of tables.

    Raises:
        UserError: a true label that is none of the labels.
    """

    names: tuple[str, ...]
    truth: tuple[str, ...]
    read: tuple[str | None, ...]
    named: tuple[frozenset[str], ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        spelled = {label.casefold(): label for label in self.labels}
        for name, label in zip(self.names, self.truth, strict=True):
            if label.casefold() not in spelled:
                raise UserError(
                    f"the true label of clip '{name}' is '{label}', which is none of {abbreviated(self.labels)}."
                    f"{did_you_mean(label, self.labels)} Correct the list of clips, or add the label to the labels."
                )
        object.__setattr__(self, "truth", tuple(spelled[label.casefold()] for label in self.truth))

    def take(self, places: Sequence[int]) -> Self:
        """The same about the clips at these places."""
        names, truth = tuple(self.names[i] for i in places), tuple(self.truth[i] for i in places)
        read, named = tuple(self.read[i] for i in places), tuple(self.named[i] for i in places)
        return type(self)(names, truth, read, named, self.labels)

    @cached_property
    def figures(self) -> Any:
        """Precision, recall, F1 and support of the labels that occur in the truth; computed once for all metrics."""
        return _figures(self, sorted(set(_label_indices(self)[0])))


def confusion(labels: Labels) -> list[list[int]]:
    """Counts of clips: a row for each true label, a column for each label that was answered, both in the order of the labels, and
    a last column for invalid answers."""
    from sklearn.metrics import confusion_matrix

    classes = [*range(len(labels.labels)), INVALID]
    if not labels.names:
        return [[0] * len(classes) for _ in labels.labels]
    matrix: list[list[int]] = confusion_matrix(*_label_indices(labels), labels=classes).tolist()
    return matrix[:-1]


def per_class(labels: Labels) -> list[dict[str, Any]]:
    """For each label: ``label``, ``support`` (its clips), ``precision``, ``recall`` and ``f1``; 0 where they are undefined."""
    figures = _figures(labels, range(len(labels.labels))) if labels.names else ([0.0] * len(labels.labels),) * 4
    keys = ("label", "precision", "recall", "f1", "support")
    rows = zip(labels.labels, *([float(value) for value in column] for column in figures), strict=True)
    return [{**dict(zip(keys, row, strict=True)), "support": int(row[-1])} for row in rows]


def _label_indices(labels: Labels) -> tuple[list[int], list[int]]:
    """Truth and answers as places in the labels."""
    place: dict[str | None, int] = {label: i for i, label in enumerate(labels.labels)} | {None: INVALID}
    return [place[label] for label in labels.truth], [place[label] for label in labels.read]


def _figures(labels: Labels, classes: Sequence[int]) -> Any:
    """Precision, recall, F1 and support of these classes."""
    from sklearn.metrics import precision_recall_fscore_support

    return precision_recall_fscore_support(*_label_indices(labels), labels=list(classes), zero_division=0.0)


def _averaged(figure: int, *, weighted: bool) -> Callable[[Labels], float | None]:
    """The mean of a figure over the labels that occur in the truth, weighted by their clips or not."""

    def value(labels: Labels) -> float | None:
        if not labels.names:
            return None
        return float(np.average(labels.figures[figure], weights=labels.figures[_SUPPORT] if weighted else None))

    return value


def _share(of: Callable[[Labels], Sequence[bool]]) -> Callable[[Labels], float | None]:
    def value(labels: Labels) -> float | None:
        return sum(of(labels)) / len(labels.names) if labels.names else None

    return value


def _right(labels: Labels) -> list[bool]:
    return [true == read for true, read in zip(labels.truth, labels.read, strict=True)]


def _named(labels: Labels) -> list[bool]:
    return [true in named for true, named in zip(labels.truth, labels.named, strict=True)]


def _invalid(labels: Labels) -> list[bool]:
    return [read is None for read in labels.read]


WAR = Metric("accuracy (WAR)", Labels, _share(_right))
WAF = Metric("weighted F1 (WAF)", Labels, _averaged(_F1, weighted=True))
UAR = Metric("mean recall of the classes (UAR)", Labels, _averaged(_RECALL, weighted=False))
MACRO_F1 = Metric("mean F1 of the classes", Labels, _averaged(_F1, weighted=False))
PRECISION = Metric("weighted precision", Labels, _averaged(_PRECISION, weighted=True))
RECALL = Metric("weighted recall", Labels, _averaged(_RECALL, weighted=True))
HIT_RATE = Metric("answers that name the true label", Labels, _share(_named))
INVALID_RATE = Metric("invalid answers", Labels, _share(_invalid), higher_is_better=False, top=None)

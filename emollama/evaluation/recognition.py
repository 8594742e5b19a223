"""Recognition metrics: the labels extracted from answers, compared with the true labels. They equal scikit-learn's.

An invalid answer counts as wrong: it is a class of its own that is not among the labels. WAF is the F1 of the classes weighted by
their numbers of samples, WAR is the accuracy, and UAR is the mean recall of the classes. These, together with weighted precision
and recall, are reported by the challenges MER2023 and MER2024, the benchmark DFEW and the evaluation published with
Emotion-LLaMA.

Means over classes (UAR, macro F1) cover the labels that occur in the references: a label without samples changes neither,
even if some answer is that label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from emollama.errors import UserError
from emollama.evaluation.metrics import Metric, MetricInput
from emollama.evaluation.predictions import Prediction
from emollama.evaluation.resources import NEEDS_REFERENCE, ScoringResources
from emollama.listing import abbreviated
from emollama.run_folder import RecognitionRecord
from emollama.suggestions import did_you_mean

_PRECISION, _RECALL, _F1, _SUPPORT = range(4)


@dataclass(frozen=True)
class Labels(MetricInput):
    """True labels, and the labels extracted from the answers.

    Attributes:
        names: names of the samples.
        references: true labels; differences in case from ``labels`` are corrected.
        predicted: labels of the answers; None for an invalid answer.
        mentioned: all labels that occur in each answer.
        labels: the allowed labels, in the order of tables.

    Raises:
        UserError: If a true label is not an allowed label.
    """

    references: tuple[str, ...]
    predicted: tuple[str | None, ...]
    mentioned: tuple[frozenset[str], ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        spelled = {label.casefold(): label for label in self.labels}
        for name, label in zip(self.names, self.references, strict=True):
            if label.casefold() not in spelled:
                raise UserError(
                    f"the true label of '{name}' is '{label}', which is not one of the labels {abbreviated(self.labels)}."
                    f"{did_you_mean(label, self.labels)} Correct the annotation file, or add the label."
                )
        object.__setattr__(self, "references", tuple(spelled[label.casefold()] for label in self.references))

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: the task ``emotion``, or references."""
        if task != "emotion":
            return "the task 'emotion'"
        return None if "reference" in resources.tasks[task] else NEEDS_REFERENCE

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Extract the labels of the answers that have a reference.

        Raises:
            UserError: If a reference is not an allowed label.
        """
        annotated = [prediction for prediction in predictions if prediction.reference is not None]
        extracted = [resources.label_reader.read(prediction.text) for prediction in annotated]
        try:
            return cls(
                names=tuple(prediction.name for prediction in annotated),
                references=tuple(str(prediction.reference_text) for prediction in annotated),
                predicted=tuple(extraction.label for extraction in extracted),
                mentioned=tuple(extraction.mentioned for extraction in extracted),
                labels=resources.label_reader.labels,
            )
        except UserError as error:
            raise UserError(f"{resources.spelling.name('labels')}: {error}") from None

    def take(self, indices: Sequence[int]) -> Self:
        """Return the labels of the samples at these indices."""
        names, references = tuple(self.names[i] for i in indices), tuple(self.references[i] for i in indices)
        predicted, mentioned = tuple(self.predicted[i] for i in indices), tuple(self.mentioned[i] for i in indices)
        return type(self)(names, references, predicted, mentioned, self.labels)

    def details(self, predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
        """Return the confusion matrix, the metrics of each class and the invalid answers."""
        invalid = _invalid_answers(self, predictions)
        return {"recognition": asdict(RecognitionRecord(list(self.labels), confusion(self), per_class(self), invalid))}

    def sample_rows(self, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """Return the true and the extracted label of each sample."""
        rows = zip(self.names, self.references, self.predicted, strict=True)
        return [{"name": name, "truth": reference, "label": predicted} for name, reference, predicted in rows]

    @cached_property
    def class_metrics(self) -> np.ndarray:
        """Precision, recall, F1 and support of the labels that occur in ``references``; computed once for all metrics."""
        metrics = _class_metrics(self)
        return metrics[:, metrics[_SUPPORT] > 0]


def confusion(labels: Labels) -> list[list[int]]:
    """Return the confusion matrix.

    Returns:
        Numbers of samples: one row per true label and one column per answered label, in the order of the labels, and a last
        column for invalid answers.
    """
    matrix: list[list[int]] = _counts(labels).tolist()
    return matrix


def per_class(labels: Labels) -> list[dict[str, Any]]:
    """Return ``label``, ``support`` (number of samples), ``precision``, ``recall`` and ``f1`` of each label; 0 if undefined."""
    columns = _class_metrics(labels)
    keys = ("label", "precision", "recall", "f1", "support")
    rows = zip(labels.labels, *([float(value) for value in column] for column in columns), strict=True)
    return [{**dict(zip(keys, row, strict=True)), "support": int(row[-1])} for row in rows]


def _invalid_answers(labels: Labels, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return the predictions from which no label was extracted."""
    texts = {prediction.name: prediction.text for prediction in predictions}
    rows = zip(labels.names, labels.references, labels.predicted, strict=True)
    return [{"name": name, "reference": label, "prediction": texts[name]} for name, label, predicted in rows if predicted is None]


def _counts(labels: Labels) -> np.ndarray:
    """Return the confusion matrix, (L, L + 1); the last column is for invalid answers."""
    size = len(labels.labels)
    index: dict[str | None, int] = {label: i for i, label in enumerate(labels.labels)} | {None: size}
    pairs = zip(labels.references, labels.predicted, strict=True)
    cells = [index[reference] * (size + 1) + index[predicted] for reference, predicted in pairs]
    return np.bincount(np.array(cells, np.int64), minlength=size * (size + 1)).reshape(size, size + 1)


def _class_metrics(labels: Labels) -> np.ndarray:
    """Return precision, recall, F1 and support of all labels, (4, L); 0 if undefined.

    Counting takes a hundredth of the time of scikit-learn's functions, which matters for thousands of resamples.
    """
    counts = _counts(labels)
    correct, answered, support = counts.diagonal(), counts.sum(0)[:-1], counts.sum(1)
    ratios = ((correct, answered), (correct, support), (2 * correct, answered + support))
    columns = [np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0) for part, whole in ratios]
    return np.stack([*columns, support.astype(float)])


def _averaged(column: int, *, weighted: bool) -> Callable[[Labels], float | None]:
    """Return a metric that averages one class metric over the true labels, optionally weighted by their numbers of samples."""

    def compute(labels: Labels) -> float | None:
        if not labels.names:
            return None
        return float(np.average(labels.class_metrics[column], weights=labels.class_metrics[_SUPPORT] if weighted else None))

    return compute


def _fraction(condition: Callable[[Labels], Sequence[bool]]) -> Callable[[Labels], float | None]:
    def compute(labels: Labels) -> float | None:
        return sum(condition(labels)) / len(labels.names) if labels.names else None

    return compute


def _correct(labels: Labels) -> list[bool]:
    return [reference == predicted for reference, predicted in zip(labels.references, labels.predicted, strict=True)]


def _mentioned(labels: Labels) -> list[bool]:
    return [reference in mentioned for reference, mentioned in zip(labels.references, labels.mentioned, strict=True)]


def _invalid(labels: Labels) -> list[bool]:
    return [predicted is None for predicted in labels.predicted]


WAR = Metric("accuracy (WAR)", "labels", _fraction(_correct))
WAF = Metric("weighted F1 (WAF)", "labels", _averaged(_F1, weighted=True))
UAR = Metric("mean recall over classes (UAR)", "labels", _averaged(_RECALL, weighted=False))
MACRO_F1 = Metric("mean F1 over classes", "labels", _averaged(_F1, weighted=False))
PRECISION = Metric("weighted precision", "labels", _averaged(_PRECISION, weighted=True))
RECALL = Metric("weighted recall", "labels", _averaged(_RECALL, weighted=True))
HIT_RATE = Metric("answers that contain the true label", "labels", _fraction(_mentioned))
INVALID_RATE = Metric("invalid answers", "labels", _fraction(_invalid), higher_is_better=False, max_value=None)

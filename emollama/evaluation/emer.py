"""EMER's two scores: clue overlap and label overlap of a description and its reference, as rated by a judge.

Clue overlap takes one question per sample. Label overlap first extracts the emotion words of the reference and of the prediction
and then compares them; the words of each distinct text are requested once, even if several samples or files contain it. Both
scores range from 0 to 10. A metric is the mean over the samples that have a score; samples without a score are listed with the
reason and do not enter the mean.

An empty prediction scores 0, and a prediction without emotion words has label overlap 0; the judge is not asked in either case.
An empty reference, or one without emotion words, gives no score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from emollama.evaluation.judges.judge import Extraction, Judge, Verdict
from emollama.evaluation.metrics import Metric, MetricInput
from emollama.evaluation.predictions import DESCRIPTION_TASKS, Prediction
from emollama.evaluation.resources import NEEDS_REFERENCE, ScoringResources

Failures = list[dict[str, str]]
T = TypeVar("T")


@dataclass(frozen=True)
class JudgedOverlaps(MetricInput):
    """Base class of metric inputs of descriptions that a judge has compared with their references.

    Attributes:
        verdicts: one verdict per sample.
        metric: name of the metric.
    """

    verdicts: tuple[Verdict, ...]

    metric: ClassVar[str]
    content = "descriptions"
    uses_judge = True

    @classmethod
    def missing(cls, resources: ScoringResources, task: str) -> str | None:
        """Return what is missing: a task with descriptions, a judge, or references."""
        if task not in DESCRIPTION_TASKS:
            return "a task with descriptions (reason, reason_v2)"
        if resources.judge is None:
            return f"a judge; set {resources.spelling.component('judge', 'lexical')}, or another judge"
        return None if "reference" in resources.tasks[task] else NEEDS_REFERENCE

    @classmethod
    def of(cls, judge: Judge, predictions: Sequence[Prediction]) -> Self:
        """Let the judge compare predictions with their references.

        Raises:
            UserError: If the judge cannot be used.
        """
        raise NotImplementedError

    @classmethod
    def compute(cls, predictions: Sequence[Prediction], resources: ScoringResources) -> Self:
        """Let the judge compare the predictions that have references with them."""
        assert resources.judge is not None
        return cls.of(resources.judge, [prediction for prediction in predictions if prediction.reference is not None])

    def scored(self) -> Self:
        """Return the samples for which the judge did not fail."""
        return self.take([index for index, verdict in enumerate(self.verdicts) if verdict.score is not None])

    def details(self, predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
        """Return the score of each sample, and why others have none."""
        rows = zip(self.names, self.verdicts, strict=True)
        return {
            "failures": self.failures(),
            "clip_scores": [{"name": name, self.metric: verdict.score} for name, verdict in rows],
        }

    def failures(self) -> Failures:
        """Return ``{name, metric, failure}`` for every sample without a score."""
        return [
            {"name": name, "metric": self.metric, "failure": verdict.failure or "the judge gave no reason"}
            for name, verdict in zip(self.names, self.verdicts, strict=True)
            if verdict.score is None
        ]


class ClueOverlaps(JudgedOverlaps):
    """Verdicts on the clues that descriptions share with their references, one per sample."""

    metric = "clue_overlap"

    @classmethod
    def of(cls, judge: Judge, predictions: Sequence[Prediction]) -> Self:
        """Let the judge compare the clues of predictions with those of their references.

        Raises:
            UserError: If the judge cannot be used.
        """
        verdicts = [_verdict_without_judge(prediction) for prediction in predictions]
        pairs = [(prediction.reference_text or "", prediction.text) for prediction in _without_verdict(predictions, verdicts)]
        return cls(tuple(prediction.name for prediction in predictions), _filled(verdicts, pairs, judge.clue_overlap))


@dataclass(frozen=True)
class LabelOverlaps(JudgedOverlaps):
    """Verdicts on the emotion words of descriptions, one per sample, with the words.

    Attributes:
        reference_words: emotion words of each reference; () if there are none or the judge was not asked.
        predicted_words: emotion words of each prediction; () if there are none or the judge was not asked.
    """

    reference_words: tuple[tuple[str, ...], ...]
    predicted_words: tuple[tuple[str, ...], ...]

    metric = "label_overlap"

    @classmethod
    def of(cls, judge: Judge, predictions: Sequence[Prediction]) -> Self:
        """Let the judge compare the emotion words of predictions with those of their references.

        Raises:
            UserError: If the judge cannot be used.
        """
        verdicts = [_verdict_without_judge(prediction) for prediction in predictions]
        texts = [(prediction.reference_text or "", prediction.text) for prediction in _without_verdict(predictions, verdicts)]
        distinct = list(dict.fromkeys(text for pair in texts for text in pair))
        extractions = dict(zip(distinct, judge.emotion_words(distinct) if distinct else [], strict=True))
        empty = Extraction(())
        in_references = [extractions.get(prediction.reference_text or "", empty) for prediction in predictions]
        in_predictions = [extractions.get(prediction.text, empty) for prediction in predictions]
        both = list(zip(in_references, in_predictions, strict=True))
        verdicts = [verdict or _verdict_from_words(*words) for verdict, words in zip(verdicts, both, strict=True)]
        pairs = [(reference.words or (), predicted.words or ()) for reference, predicted in _without_verdict(both, verdicts)]
        return cls(
            names=tuple(prediction.name for prediction in predictions),
            verdicts=_filled(verdicts, pairs, judge.label_overlap),
            reference_words=tuple(extraction.words or () for extraction in in_references),
            predicted_words=tuple(extraction.words or () for extraction in in_predictions),
        )

    def details(self, predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, Any]:
        """Return the score and the emotion words of each sample, and why others have no score."""
        content = super().details(predictions, metrics)
        rows = zip(content["clip_scores"], self.reference_words, self.predicted_words, strict=True)
        return content | {
            "clip_scores": [row | {"true_words": reference, "predicted_words": predicted} for row, reference, predicted in rows]
        }


def _verdict_without_judge(prediction: Prediction) -> Verdict | None:
    """Return the verdict on a prediction that needs no judge, because it or its reference is empty; None for others."""
    if not (prediction.reference_text or "").strip():
        return Verdict(None, "the reference is empty")
    return None if prediction.text.strip() else Verdict(0.0, explanation="the prediction is empty")


def _verdict_from_words(reference: Extraction, predicted: Extraction) -> Verdict | None:
    """Return the verdict on emotion words that need no judge, because there are none; None for other words."""
    for source, extraction in (("reference", reference), ("prediction", predicted)):
        if extraction.words is None:
            return Verdict(None, f"emotion words of the {source}: {extraction.failure}")
    if not reference.words:
        return Verdict(None, "the judge found no emotion words in the reference")
    return None if predicted.words else Verdict(0.0, explanation="the prediction has no emotion words")


def _without_verdict(values: Sequence[T], verdicts: Sequence[Verdict | None]) -> list[T]:
    return [value for value, verdict in zip(values, verdicts, strict=True) if verdict is None]


def _filled(
    verdicts: Sequence[Verdict | None], pairs: list[Any], ask: Callable[[list[Any]], list[Verdict]]
) -> tuple[Verdict, ...]:
    """Replace each None in ``verdicts``, in order, by the judge's verdict on the next pair."""
    judged = iter(ask(pairs) if pairs else [])
    return tuple(verdict or next(judged) for verdict in verdicts)


def _mean(overlaps: JudgedOverlaps) -> float | None:
    scores = [verdict.score for verdict in overlaps.verdicts if verdict.score is not None]
    return sum(scores) / len(scores) if scores else None


CLUE_OVERLAP = Metric("clue overlap", "clue_overlaps", _mean, max_value=10.0)
LABEL_OVERLAP = Metric("label overlap", "label_overlaps", _mean, max_value=10.0)

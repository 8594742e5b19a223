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
from typing import Any, Self, TypeVar

from emollama.evaluation.judges.judge import Extraction, Judge, Verdict
from emollama.evaluation.metrics import Metric
from emollama.evaluation.predictions import Prediction

Failures = list[dict[str, str]]
T = TypeVar("T")


@dataclass(frozen=True)
class ClueOverlaps:
    """Verdicts on the clues that descriptions share with their references, one per sample."""

    names: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    def take(self, indices: Sequence[int]) -> Self:
        """Return the verdicts at these indices."""
        return type(self)(_take(self.names, indices), _take(self.verdicts, indices))

    def failures(self) -> Failures:
        """Return ``{name, metric, failure}`` for every sample without a score."""
        return _failures("clue_overlap", self.names, self.verdicts)


@dataclass(frozen=True)
class LabelOverlaps:
    """Verdicts on the emotion words of descriptions, one per sample, with the words.

    Attributes:
        names: names of the samples.
        verdicts: one verdict per sample.
        reference_words: emotion words of each reference; () if there are none or the judge was not asked.
        predicted_words: emotion words of each prediction; () if there are none or the judge was not asked.
    """

    names: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    reference_words: tuple[tuple[str, ...], ...]
    predicted_words: tuple[tuple[str, ...], ...]

    def take(self, indices: Sequence[int]) -> Self:
        """Return the verdicts at these indices."""
        return type(self)(
            _take(self.names, indices),
            _take(self.verdicts, indices),
            _take(self.reference_words, indices),
            _take(self.predicted_words, indices),
        )

    def failures(self) -> Failures:
        """Return ``{name, metric, failure}`` for every sample without a score."""
        return _failures("label_overlap", self.names, self.verdicts)


def judge_clues(judge: Judge, predictions: Sequence[Prediction]) -> ClueOverlaps:
    """Let the judge compare the clues of predictions with those of their references.

    Raises:
        UserError: If the judge cannot be used.
    """
    verdicts = [_verdict_without_judge(prediction) for prediction in predictions]
    pairs = [(prediction.reference_text or "", prediction.text) for prediction in _without_verdict(predictions, verdicts)]
    return ClueOverlaps(tuple(prediction.name for prediction in predictions), _filled(verdicts, pairs, judge.clue_overlap))


def judge_labels(judge: Judge, predictions: Sequence[Prediction]) -> LabelOverlaps:
    """Let the judge compare the emotion words of predictions with those of their references.

    Raises:
        UserError: If the judge cannot be used.
    """
    verdicts = [_verdict_without_judge(prediction) for prediction in predictions]
    to_judge = _without_verdict(predictions, verdicts)
    texts = list(dict.fromkeys(text for prediction in to_judge for text in (prediction.reference_text or "", prediction.text)))
    extractions = dict(zip(texts, judge.emotion_words(texts) if texts else [], strict=True))
    empty = Extraction(())
    in_references = [extractions.get(prediction.reference_text or "", empty) for prediction in predictions]
    in_predictions = [extractions.get(prediction.text, empty) for prediction in predictions]
    both = list(zip(in_references, in_predictions, strict=True))
    verdicts = [verdict or _verdict_from_words(*words) for verdict, words in zip(verdicts, both, strict=True)]
    pairs = [(reference.words or (), predicted.words or ()) for reference, predicted in _without_verdict(both, verdicts)]
    return LabelOverlaps(
        names=tuple(prediction.name for prediction in predictions),
        verdicts=_filled(verdicts, pairs, judge.label_overlap),
        reference_words=tuple(extraction.words or () for extraction in in_references),
        predicted_words=tuple(extraction.words or () for extraction in in_predictions),
    )


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


def _failures(metric: str, names: tuple[str, ...], verdicts: tuple[Verdict, ...]) -> Failures:
    return [
        {"name": name, "metric": metric, "failure": verdict.failure or "the judge gave no reason"}
        for name, verdict in zip(names, verdicts, strict=True)
        if verdict.score is None
    ]


def _take(values: tuple[Any, ...], indices: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[index] for index in indices)


def _mean(overlaps: ClueOverlaps | LabelOverlaps) -> float | None:
    scores = [verdict.score for verdict in overlaps.verdicts if verdict.score is not None]
    return sum(scores) / len(scores) if scores else None


CLUE_OVERLAP = Metric("clue overlap", ClueOverlaps, _mean, max_value=10.0)
LABEL_OVERLAP = Metric("label overlap", LabelOverlaps, _mean, max_value=10.0)

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
from typing import Any, Self

from emollama.evaluation.answers import Answer
from emollama.evaluation.judges.judge import Extraction, Judge, Verdict
from emollama.evaluation.metrics import Metric

Failures = list[dict[str, str]]


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
        true_words: emotion words of each reference; () if there are none or the judge was not asked.
        predicted_words: emotion words of each prediction; () if there are none or the judge was not asked.
    """

    names: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    true_words: tuple[tuple[str, ...], ...]
    predicted_words: tuple[tuple[str, ...], ...]

    def take(self, indices: Sequence[int]) -> Self:
        """Return the verdicts at these indices."""
        return type(self)(
            _take(self.names, indices),
            _take(self.verdicts, indices),
            _take(self.true_words, indices),
            _take(self.predicted_words, indices),
        )

    def failures(self) -> Failures:
        """Return ``{name, metric, failure}`` for every sample without a score."""
        return _failures("label_overlap", self.names, self.verdicts)


def judge_clues(judge: Judge, answers: Sequence[Answer]) -> ClueOverlaps:
    """Let the judge compare the clues of answers with those of their references.

    Raises:
        UserError: If the judge cannot be used.
    """
    verdicts = [_verdict_without_judge(answer) for answer in answers]
    pairs = [(answer.truth or "", answer.prediction) for answer, verdict in zip(answers, verdicts, strict=True) if not verdict]
    return ClueOverlaps(tuple(answer.name for answer in answers), _filled(verdicts, pairs, judge.clue_overlap))


def judge_labels(judge: Judge, answers: Sequence[Answer]) -> LabelOverlaps:
    """Let the judge compare the emotion words of answers with those of their references.

    Raises:
        UserError: If the judge cannot be used.
    """
    verdicts = [_verdict_without_judge(answer) for answer in answers]
    open_answers = [answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict is None]
    texts = list(dict.fromkeys(text for answer in open_answers for text in (answer.truth or "", answer.prediction)))
    extractions = dict(zip(texts, judge.emotion_words(texts) if texts else [], strict=True))
    empty = Extraction(())
    true = [extractions.get(answer.truth or "", empty) for answer in answers]
    predicted = [extractions.get(answer.prediction, empty) for answer in answers]
    verdicts = [verdict or _verdict_from_words(*words) for verdict, *words in zip(verdicts, true, predicted, strict=True)]
    pairs = [
        (one.words or (), other.words or ()) for one, other, verdict in zip(true, predicted, verdicts, strict=True) if not verdict
    ]
    return LabelOverlaps(
        names=tuple(answer.name for answer in answers),
        verdicts=_filled(verdicts, pairs, judge.label_overlap),
        true_words=tuple(extraction.words or () for extraction in true),
        predicted_words=tuple(extraction.words or () for extraction in predicted),
    )


def _verdict_without_judge(answer: Answer) -> Verdict | None:
    """Return the verdict on an answer that needs no judge, because it or its reference is empty; None for other answers."""
    if not (answer.truth or "").strip():
        return Verdict(None, "the reference is empty")
    return None if answer.prediction.strip() else Verdict(0.0, explanation="the prediction is empty")


def _verdict_from_words(true: Extraction, predicted: Extraction) -> Verdict | None:
    """Return the verdict on emotion words that need no judge, because there are none; None for other words."""
    for source, extraction in (("reference", true), ("prediction", predicted)):
        if extraction.words is None:
            return Verdict(None, f"emotion words of the {source}: {extraction.failure}")
    if not true.words:
        return Verdict(None, "the judge found no emotion words in the reference")
    return None if predicted.words else Verdict(0.0, explanation="the prediction has no emotion words")


def _filled(
    verdicts: Sequence[Verdict | None], pairs: list[Any], ask: Callable[[list[Any]], list[Verdict]]
) -> tuple[Verdict, ...]:
    """Replace each None in ``verdicts``, in order, by the judge's verdict on the next pair."""
    answers = iter(ask(pairs) if pairs else [])
    return tuple(verdict or next(answers) for verdict in verdicts)


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


CLUE_OVERLAP = Metric("clue overlap", ClueOverlaps, _mean, top=10.0)
LABEL_OVERLAP = Metric("label overlap", LabelOverlaps, _mean, top=10.0)

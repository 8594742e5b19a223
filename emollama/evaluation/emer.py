"""EMER's two scores: how far a description shares the truth's clues, and how far it names the truth's emotions. A judge says.

Clue overlap is one question a clip. Label overlap takes the emotion words out of the truth and of the prediction, and then
compares them; the words of a text are asked for once, however many clips or files hold it. Both run from 0 to 10, and a metric is
the mean over the clips that have a score: those without one are told with the reason, never counted as something.

An empty prediction scores 0, and a prediction without emotion words has label overlap 0, without a judge. A truth that is empty,
or without emotion words, gives no score.
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
    """Verdicts on the evidence that descriptions share, one a clip."""

    names: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    def take(self, places: Sequence[int]) -> Self:
        """The verdicts at these places."""
        return type(self)(_at(self.names, places), _at(self.verdicts, places))

    def failures(self) -> Failures:
        """``{name, metric, failure}`` of every clip without a score."""
        return _failures("clue_overlap", self.names, self.verdicts)


@dataclass(frozen=True)
class LabelOverlaps:
    """Verdicts on the emotion words of descriptions, one a clip, with the words; () where there are none or nobody was asked."""

    names: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    true_words: tuple[tuple[str, ...], ...]
    predicted_words: tuple[tuple[str, ...], ...]

    def take(self, places: Sequence[int]) -> Self:
        """The verdicts at these places."""
        return type(self)(
            _at(self.names, places), _at(self.verdicts, places), _at(self.true_words, places), _at(self.predicted_words, places)
        )

    def failures(self) -> Failures:
        """``{name, metric, failure}`` of every clip without a score."""
        return _failures("label_overlap", self.names, self.verdicts)


def judge_clues(judge: Judge, answers: Sequence[Answer]) -> ClueOverlaps:
    """Have the clues of answers judged against their references.

    Raises:
        UserError: the judge cannot be asked.
    """
    given = [_without_asking(answer) for answer in answers]
    pairs = [(answer.truth or "", answer.prediction) for answer, verdict in zip(answers, given, strict=True) if verdict is None]
    return ClueOverlaps(tuple(answer.name for answer in answers), _filled(given, pairs, judge.clue_overlap))


def judge_labels(judge: Judge, answers: Sequence[Answer]) -> LabelOverlaps:
    """Have the emotion words of answers judged against those of their references.

    Raises:
        UserError: the judge cannot be asked.
    """
    given = [_without_asking(answer) for answer in answers]
    asked = [answer for answer, verdict in zip(answers, given, strict=True) if verdict is None]
    texts = list(dict.fromkeys(text for answer in asked for text in (answer.truth or "", answer.prediction)))
    found = dict(zip(texts, judge.emotion_words(texts) if texts else [], strict=True))
    nothing = Extraction(())
    true = [found.get(answer.truth or "", nothing) for answer in answers]
    predicted = [found.get(answer.prediction, nothing) for answer in answers]
    given = [verdict or _by_words(*words) for verdict, *words in zip(given, true, predicted, strict=True)]
    pairs = [
        (one.words or (), other.words or ()) for one, other, verdict in zip(true, predicted, given, strict=True) if not verdict
    ]
    return LabelOverlaps(
        names=tuple(answer.name for answer in answers),
        verdicts=_filled(given, pairs, judge.label_overlap),
        true_words=tuple(extraction.words or () for extraction in true),
        predicted_words=tuple(extraction.words or () for extraction in predicted),
    )


def _without_asking(answer: Answer) -> Verdict | None:
    """The verdict on an answer that needs no judge."""
    if not (answer.truth or "").strip():
        return Verdict(None, "the truth is empty")
    return None if answer.prediction.strip() else Verdict(0.0, explanation="the prediction is empty")


def _by_words(true: Extraction, predicted: Extraction) -> Verdict | None:
    """The verdict on emotion words that need no judge: they could not be found, or there are none."""
    for whose, extraction in (("truth", true), ("prediction", predicted)):
        if extraction.words is None:
            return Verdict(None, f"emotion words of the {whose}: {extraction.failure}")
    if not true.words:
        return Verdict(None, "the judge found no emotion word in the truth")
    return None if predicted.words else Verdict(0.0, explanation="the prediction has no emotion word")


def _filled(given: Sequence[Verdict | None], pairs: list[Any], ask: Callable[[list[Any]], list[Verdict]]) -> tuple[Verdict, ...]:
    """The verdicts that are given, and in the gaps, in order, those on the pairs."""
    asked = iter(ask(pairs) if pairs else [])
    return tuple(verdict or next(asked) for verdict in given)


def _failures(metric: str, names: tuple[str, ...], verdicts: tuple[Verdict, ...]) -> Failures:
    return [
        {"name": name, "metric": metric, "failure": verdict.failure or "the judge gave no reason"}
        for name, verdict in zip(names, verdicts, strict=True)
        if verdict.score is None
    ]


def _at(values: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[place] for place in places)


def _mean(overlaps: ClueOverlaps | LabelOverlaps) -> float | None:
    scores = [verdict.score for verdict in overlaps.verdicts if verdict.score is not None]
    return sum(scores) / len(scores) if scores else None


CLUE_OVERLAP = Metric("clue overlap", ClueOverlaps, _mean, top=10.0)
LABEL_OVERLAP = Metric("label overlap", LabelOverlaps, _mean, top=10.0)

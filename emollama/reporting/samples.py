"""Selection of the answers that a report shows: some correct and some wrong, or a range from the worst to the best scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import Any

from emollama.errors import UserError
from emollama.evaluation.labels import LabelReader
from emollama.json_io import mapping, text, texts
from emollama.reporting.run_files import TaskResult, sample_scores
from emollama.run_folder import PredictionRecord

LABELLED = 20  # answers of a recognition task; half of them are wrong if enough are
DESCRIBED = 8  # answers of other tasks


@dataclass(frozen=True)
class ReportSample:
    """One answer next to its reference.

    Attributes:
        name: name of the sample.
        reference: reference text, one line per caption, or else the training target; None if the data has neither.
        answer: the answer.
        read: the extracted label; "" if there is none or the task has no labels.
        right: whether the label is correct; None for a task without labels.
        scores: available scores among clue_overlap, label_overlap and cider_d.
        words: emotion words of (reference, answer), if they were extracted.
        loss: loss of the target.
    """

    name: str
    reference: str | None
    answer: str
    read: str = ""
    right: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    words: tuple[Sequence[str], Sequence[str]] = ((), ())
    loss: float | None = None


def select_samples(result: TaskResult, keys: Mapping[str, Any]) -> list[ReportSample]:
    """Select some of a task's answers; the selection only depends on the files.

    Args:
        result: results of the task.
        keys: keys of its block in the configuration, which determine how labels are extracted from answers.
    """
    rows = sorted(result.predictions, key=lambda row: row.name)
    if result.recognition:
        return _labelled(result, rows, _reader(result.recognition.labels, keys))
    score_counts = [len(sample_scores(_judged(result, row))) for row in rows]
    most = max(score_counts, default=0)
    if most:
        # Sums of scores are only comparable between answers that have all scores.
        rows = [row for row, count in zip(rows, score_counts, strict=True) if count == most]
        rows.sort(key=lambda row: sum(sample_scores(_judged(result, row)).values()))
    return [_described(row, _judged(result, row)) for row in spread(rows, DESCRIBED)]


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Return at most ``count`` evenly spaced rows, including the first and the last."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * (len(rows) - 1) // (count - 1)] for index in range(count)]


def _reader(labels: Sequence[str], keys: Mapping[str, Any]) -> LabelReader:
    """Return a label reader with the configured settings, with defaults if these are invalid, else without labels."""
    aliases = {text(word): text(label) for word, label in mapping(keys.get("aliases")).items()}
    rule, several = text(keys.get("answer_rule")) or "search", text(keys.get("several_hits")) or "invalid"
    for arguments in ((labels, aliases, rule, several), (labels, {}, "search", "invalid")):
        with suppress(UserError):
            return LabelReader(*arguments)  # type: ignore[arg-type]
    return LabelReader((), {})


def _labelled(result: TaskResult, rows: Sequence[PredictionRecord], reader: LabelReader) -> list[ReportSample]:
    """Select wrong and then correct answers, alternating between the true labels."""
    assert result.recognition
    invalid = {text(row.get("name")) for row in result.recognition.invalid}
    groups: dict[bool, dict[str, list[ReportSample]]] = {False: defaultdict(list), True: defaultdict(list)}
    for row in rows:
        reference = _reference(row)
        if reference is not None:
            read = "" if row.name in invalid else reader.read(row.prediction).label or ""
            right = bool(read) and read.casefold() == reference.strip().casefold()
            groups[right][reference].append(ReportSample(row.name, reference, row.prediction, read, right, loss=row.loss))
    wrong, correct = (list(_in_turn(groups[right])) for right in (False, True))
    half = LABELLED // 2
    return wrong[: max(half, LABELLED - len(correct))] + correct[: max(half, LABELLED - len(wrong))]


def _in_turn(groups: Mapping[str, Sequence[ReportSample]]) -> Iterator[ReportSample]:
    """Yield the first sample of each group, then the second of each, and so on."""
    turns = chain.from_iterable(zip_longest(*(groups[label] for label in sorted(groups))))
    return islice((sample for sample in turns if sample is not None), LABELLED)


def _described(row: PredictionRecord, judged: Mapping[str, Any]) -> ReportSample:
    words = (texts(judged.get("true_words")), texts(judged.get("predicted_words")))
    scores = sample_scores(judged)
    return ReportSample(row.name, _reference(row), row.prediction, scores=scores, words=words, loss=row.loss)


def _judged(result: TaskResult, row: PredictionRecord) -> Mapping[str, Any]:
    return result.clip_scores.get(row.name, {})


def _reference(row: PredictionRecord) -> str | None:
    reference = row.target if row.reference is None else row.reference
    return "\n".join(reference) if isinstance(reference, list) else reference

"""Which answers a report shows: a few that are right and a few that are wrong, or from the worst to the best judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import Any

from emollama.errors import UserError
from emollama.evaluation.labels import LabelReader
from emollama.reporting.json_io import mapping, number, text, texts
from emollama.reporting.run_files import TaskResult, score_of

LABELLED = 20  # samples of a task that recognises labels, half of them wrong where there are so many
DESCRIBED = 8  # samples of a task that describes


@dataclass(frozen=True)
class ReportSample:
    """One answer beside its truth.

    Attributes:
        name: the clip.
        truth: the data's own text, a line each where there are several, else the training target; None where there is neither.
        answer: what was answered.
        read: the label in it, "" where there is none or none is wanted.
        right: whether that is the truth; None of a description.
        scores: clue_overlap, label_overlap, cider_d, as far as they are known.
        words: the emotion words found in (truth, answer), where somebody looked for them.
        loss: of the target.
    """

    name: str
    truth: str | None
    answer: str
    read: str = ""
    right: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    words: tuple[Sequence[str], Sequence[str]] = ((), ())
    loss: float | None = None


def samples_of(result: TaskResult, keys: Mapping[str, Any]) -> list[ReportSample]:
    """A readable choice of a task's answers, the same whenever the files are the same.

    Args:
        result: the task.
        keys: of its block in the configuration, which say how labels are read out of answers.
    """
    rows = sorted(result.predictions, key=lambda row: text(row.get("name")))
    if result.recognition:
        return _labelled(result, rows, _reader(result.recognition.labels, keys))
    known = [len(score_of(_judged(result, row))) for row in rows]
    if max(known, default=0):  # from the worst to the best of those that have all scores
        rows = [row for row, count in zip(rows, known, strict=True) if count == max(known)]
        rows.sort(key=lambda row: sum(score_of(_judged(result, row)).values()))
    return [_described(row, _judged(result, row)) for row in spread(rows, DESCRIBED)]


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[place * (len(rows) - 1) // (count - 1)] for place in range(count)]


def _reader(labels: Sequence[str], keys: Mapping[str, Any]) -> LabelReader:
    """As the configuration has it; with the defaults where that is not usable; one that reads nothing of unusable labels."""
    aliases = {text(word): text(label) for word, label in mapping(keys.get("aliases")).items()}
    rule, several = text(keys.get("answer_rule")) or "search", text(keys.get("several_hits")) or "invalid"
    for given in ((labels, aliases, rule, several), (labels, {}, "search", "invalid")):
        with suppress(UserError):
            return LabelReader(*given)  # type: ignore[arg-type]
    return LabelReader((), {})


def _labelled(result: TaskResult, rows: Sequence[Mapping[str, Any]], reader: LabelReader) -> list[ReportSample]:
    """Wrong answers before right ones, each with all true labels in turn."""
    assert result.recognition
    invalid = {text(row.get("name")) for row in result.recognition.invalid}
    groups: dict[bool, dict[str, list[ReportSample]]] = {False: defaultdict(list), True: defaultdict(list)}
    for row in rows:
        truth = _truth(row)
        if truth is not None:
            read = "" if text(row.get("name")) in invalid else reader.read(text(row.get("prediction"))).label or ""
            right = bool(read) and read.casefold() == truth.strip().casefold()
            sample = ReportSample(
                text(row.get("name")), truth, text(row.get("prediction")), read, right, loss=number(row.get("loss"))
            )
            groups[right][truth].append(sample)
    wrong, good = (list(_in_turn(groups[right])) for right in (False, True))
    half = LABELLED // 2
    return wrong[: max(half, LABELLED - len(good))] + good[: max(half, LABELLED - len(wrong))]


def _in_turn(groups: Mapping[str, Sequence[ReportSample]]) -> Iterator[ReportSample]:
    """The first of each group, the second of each, and so on."""
    turns = chain.from_iterable(zip_longest(*(groups[label] for label in sorted(groups))))
    return islice((sample for sample in turns if sample is not None), LABELLED)


def _described(row: Mapping[str, Any], judged: Mapping[str, Any]) -> ReportSample:
    words = (texts(judged.get("true_words")), texts(judged.get("predicted_words")))
    answer, loss = text(row.get("prediction")), number(row.get("loss"))
    return ReportSample(text(row.get("name")), _truth(row), answer, scores=score_of(judged), words=words, loss=loss)


def _judged(result: TaskResult, row: Mapping[str, Any]) -> Mapping[str, Any]:
    return result.clip_scores.get(text(row.get("name")), {})


def _truth(row: Mapping[str, Any]) -> str | None:
    found = next((row[key] for key in ("reference", "target") if row.get(key) is not None), None)
    if found is None:
        return None
    return "\n".join(texts(found)) if isinstance(found, list) else text(found)

"""Scores of several files as text: figures with their intervals, differences from the first file, counts, names.

All functions take the plain values of a ``scores.json`` (:func:`~emollama.evaluation.records.task_record`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from emollama.evaluation.emer import ClueOverlaps, LabelOverlaps
from emollama.evaluation.metrics import metric
from emollama.evaluation.openset import OpenSets
from emollama.evaluation.published import CAUTION, EMER
from emollama.evaluation.wheels import WheelSets
from emollama.listing import abbreviated
from emollama.logs.console import aligned

Files = Mapping[str, Mapping[str, Any]]  # file -> what is recorded about it
WIDTH = 5  # metrics side by side
LEAST_P = 0.001  # that is shown
TEXT_SHOWN = 60  # characters of an answer
LISTS = {
    "missing": "clips without an answer, which count as empty",
    "unknown": "answers to clips of which no truth is known, left out",
    "empty": "empty answers",
    "unreadable": "broken lists of words, read as descriptions (in .npz: cut at quotes and commas)",
}
KINDS = {"descriptions": (ClueOverlaps, LabelOverlaps), "emotion words": (OpenSets, WheelSets)}


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """path -> its shortest tail that no other path ends with."""
    parts = {path: path.split("/") for path in paths}
    found = {}
    for path, own in parts.items():
        others = [each for other, each in parts.items() if other != path]
        depth = next((n for n in range(1, len(own)) if all(each[-n:] != own[-n:] for each in others)), len(own))
        found[path] = "/".join(own[-depth:])
    return found


def path_lines(short: Mapping[str, str]) -> list[str]:
    """What the tables' short names stand for; nothing where they are the paths."""
    return [f"{name} is {path}" for path, name in short.items() if name != path]


def task_text(task: str, files: Files) -> Iterator[str]:
    """Everything about one task's figures, line by line."""
    first, *others = files
    metrics = [
        name for name in files[first]["estimates"] if any(_has_value(one, name) or _failed(one, name) for one in files.values())
    ]
    labels = f"; labels {' '.join(files[first]['recognition']['labels'])}" if "recognition" in files[first] else ""
    words = f"; tokenizer: {files[first]['captions']['tokenizer']}" if "captions" in files[first] else ""
    yield f"{f'task {task}' if task else _kind(files[first])}: {files[first]['clips']} clips{labels}{words}"
    if not metrics:
        yield "no figures: descriptions are scored by a judge, --judge"
    parts = [metrics[start : start + WIDTH] for start in range(0, len(metrics), WIDTH)]
    for some in parts:
        yield ""
        yield from figures(files, some)
    legend = [f"{name}: {_title(name)}" for name in metrics if _title(name).lower().replace("-", " ") != name.replace("_", " ")]
    legend += [f"{file}: {name}: {reason}" for file, record in files.items() for name, reason in _nothing(record, metrics)]
    yield from ["", *legend] if legend else []
    if others and metrics:
        yield ""
        yield f"Differences from {first}, over the clips that both have scores for: 95% interval, two-sided p (clips)"
        for some in parts:
            yield ""
            yield from differences({file: files[file] for file in others}, some)
    yield ""


def figures(files: Files, metrics: Sequence[str]) -> list[str]:
    """A row a file: each metric's value, beneath it its interval, and the clips with a score where these are not all."""
    rows = [["", *metrics]]
    for file, record in files.items():
        found = [(name, record["estimates"][name]) for name in metrics]
        rows.append([file, *(_number(name, one["value"]) for name, one in found)])
        rows.append(["", *(_interval(name, one) for name, one in found)])
        some = [f"{one['clips']} of {record['clips']}" if one["clips"] < record["clips"] else "" for _, one in found]
        rows += [["  clips", *some]] if any(some) else []
    return aligned(rows)


def differences(files: Files, metrics: Sequence[str]) -> list[str]:
    """A row a file: each metric's difference from the first file, its interval, and p with the number of clips beneath."""
    rows = [["", *metrics]]
    for file, record in files.items():
        found = [(name, record["differences"][name]) for name in metrics]
        rows.append([file, *(_number(name, one["value"], signed=True) for name, one in found)])
        rows.append(["", *(_interval(name, one) for name, one in found)])
        rows.append(["", *(_sureness(one) for _, one in found)])
    return aligned(rows)


def counts(files: Files) -> list[str]:
    """A row a file: how many clips were answered with words, and what was odd about answers; clips without a score by metric."""
    rows = [["", "answered", "missing", "empty", "no truth", "invalid", "judge failed"]]
    for file, record in files.items():
        missing, empty, unknown = (len(record[kind]) for kind in ("missing", "empty", "unknown"))
        invalid = len(record["recognition"]["invalid"]) if "recognition" in record else "-"
        by_metric = Counter(row["metric"] for row in record["judge"]["failures"]) if "judge" in record else {}
        failed = ", ".join(f"{name} {number}" for name, number in by_metric.items()) or ("0" if "judge" in record else "-")
        answered = record["clips"] - missing - empty
        rows.append([file, *map(str, (answered, missing, empty, unknown, invalid, failed))])
    return aligned(rows)


def lists(files: Files) -> Iterator[str]:
    """The names behind the counts, the first few of each."""
    for file, record in files.items():
        for kind, title in LISTS.items():
            yield from _listed(f"{file}: {title}", record[kind], ", ")
        invalid = record["recognition"]["invalid"] if "recognition" in record else []
        told = [f"{row['name']} {row['prediction'][:TEXT_SHOWN]!r}" for row in invalid]
        yield from _listed(f"{file}: answers without a usable label", told, "; ")
        failures = record["judge"]["failures"] if "judge" in record else []
        told = [f"{row['name']} ({row['metric']}): {row['failure']}" for row in failures]
        yield from _listed(f"{file}: no score from the judge", told, "; ")


def published() -> list[str]:
    """What was published for EMER, marked as not comparable."""
    rows = [["", "clue_overlap", "label_overlap"]]
    rows += [[model, *(f"{figure:.2f}" for figure in pair)] for model, pair in EMER.items()]
    return [*CAUTION, *aligned(rows)]


def judge_line(judge: Mapping[str, Any]) -> str:
    """Who judged, and what it took."""
    usage = {key.replace("_", " "): value for key, value in judge.items() if key != "name" and value is not None}
    if "failed" in usage:
        usage["failed"] = f"{usage['failed']} (questions without a usable reply)"
    told = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in usage.items())
    return f"judge {judge['name']}: {', '.join(told)}"


def _has_value(record: Mapping[str, Any], name: str) -> bool:
    return record["estimates"][name]["value"] is not None


def _failed(record: Mapping[str, Any], name: str) -> list[str]:
    """Why clips have no score of a metric, one reason a clip."""
    failures = record["judge"]["failures"] if "judge" in record else []
    return [row["failure"] for row in failures if row["metric"] == name]


def _nothing(record: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(metric, why there is no figure), of metrics on which every judgement failed."""
    for name in metrics:
        if not _has_value(record, name) and (reasons := Counter(_failed(record, name)).most_common(1)):
            yield name, f"no clip has a score; most often: {reasons[0][0]} ({reasons[0][1]} clips)"


def _kind(record: Mapping[str, Any]) -> str:
    """What answers without a task are, by the metrics that they have."""
    found = {metric(name).evidence for name in record["estimates"]}
    return " and ".join(kind for kind, evidence in KINDS.items() if found & {*evidence}) or "descriptions"


def _title(name: str) -> str:
    found = metric(name)
    return found.title if found.higher_is_better else f"{found.title}; less is better"


def _number(name: str, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:{'+' if signed else ''}.{_digits(name)}f}"


def _digits(name: str) -> int:
    return 2 if metric(name).top == 10 else 4


def _interval(name: str, one: Mapping[str, Any]) -> str:
    """The ends; shares and losses with a digit less than the value has."""
    if one["low"] is None:
        return "-"
    digits = min(_digits(name), 3)
    return f"[{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def _sureness(one: Mapping[str, Any]) -> str:
    """p, as a bound (rounded up) where it is the least that the draws can tell or smaller than what is shown; the clips."""
    if one["p"] is None:
        return "-"
    if one["at_most"] or one["p"] < LEAST_P:
        return f"p <= {ceil(one['p'] / LEAST_P) * LEAST_P:.3f} ({one['clips']})"
    return f"p {one['p']:.3f} ({one['clips']})"


def _listed(title: str, items: Sequence[str], separator: str) -> Iterator[str]:
    if items:
        yield f"{title} ({len(items)}): {abbreviated(items, separator, where='--output lists all')}"

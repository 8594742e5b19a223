"""Scores of several files as text: figures with their intervals, differences from the first file, counts, names.

All functions take the plain values of a ``scores.json`` (:func:`~emollama.evaluation.records.task_record`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emollama.evaluation.metrics import metric
from emollama.evaluation.published import CAUTION, EMER

Files = Mapping[str, Mapping[str, Any]]  # file -> what is recorded about it
WIDTH = 5  # metrics side by side
SHOWN = 10  # names of a list; --output has all
TEXT_SHOWN = 60  # characters of an answer
LISTS = {
    "missing": "clips without an answer, which count as empty",
    "unknown": "answers to clips of which no truth is known, left out",
    "empty": "empty answers",
}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = widths
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))]).rstrip()
        for row in rows
    ]


def task_text(task: str, files: Files) -> Iterator[str]:
    """Everything about one task's figures, line by line."""
    first, *others = files
    metrics = [name for name in files[first]["estimates"] if any(_known(files[file], name) for file in files)]
    labels = f"; labels {' '.join(files[first]['recognition']['labels'])}" if "recognition" in files[first] else ""
    yield f"{f'task {task}' if task else 'descriptions'}: {files[first]['clips']} clips{labels}"
    if not metrics:
        judged = any("judge" in record for record in files.values())
        yield (
            "no figures: no answer of the judge is of use"
            if judged
            else "no figures: descriptions are scored by a judge, --judge"
        )
    parts = [metrics[start : start + WIDTH] for start in range(0, len(metrics), WIDTH)]
    for some in parts:
        yield ""
        yield from figures(files, some)
    legend = [f"{name}: {_title(name)}" for name in metrics if _title(name) != name.replace("_", " ")]
    yield from ["", *legend] if legend else []
    if others and metrics:
        yield ""
        yield f"Differences from {first}, over the clips that both have scores for: 95% interval, two-sided p (clips)"
        for some in parts:
            yield ""
            yield from differences({file: files[file] for file in others}, some)
    yield ""


def figures(files: Files, metrics: Sequence[str]) -> list[str]:
    """A row a file: each metric's value, and its interval beneath."""
    rows = [["", *metrics]]
    for file, record in files.items():
        found = [(name, record["estimates"][name]) for name in metrics]
        rows.append([file, *(_number(name, one["value"]) for name, one in found)])
        rows.append(["", *(_interval(name, one) for name, one in found)])
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
    """A row a file: how many clips were answered, and what was odd about answers."""
    rows = [["", "answered", "missing", "empty", "no truth", "invalid", "judge failed"]]
    for file, record in files.items():
        missing, empty, unknown = (len(record[kind]) for kind in ("missing", "empty", "unknown"))
        invalid = len(record["recognition"]["invalid"]) if "recognition" in record else "-"
        failed = len(record["judge"]["failures"]) if "judge" in record else "-"
        rows.append([file, *map(str, (record["clips"] - missing, missing, empty, unknown, invalid, failed))])
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
    told = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in usage.items())
    return f"judge {judge['name']}: {', '.join(told)}"


def _known(record: Mapping[str, Any], name: str) -> bool:
    return record["estimates"][name]["value"] is not None


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
    return "-" if one["p"] is None else f"p {one['p']:.3f} ({one['clips']})"


def _listed(title: str, items: Sequence[str], separator: str) -> Iterator[str]:
    if items:
        more = f"{separator}and {len(items) - SHOWN} more (--output lists all)" if len(items) > SHOWN else ""
        yield f"{title} ({len(items)}): {separator.join(items[:SHOWN])}{more}"

"""Tables of the scores of several files as text: values with intervals, differences from the first file, counts, names.

All functions take the plain values of a ``scores.json`` (:func:`~emollama.evaluation.records.task_record`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from emollama.evaluation.metrics import input_type, metric
from emollama.evaluation.published import CAUTION, EMER
from emollama.listing import abbreviated
from emollama.logs.console import markdown_table
from emollama.reporting.measures import metric_digits
from emollama.reporting.metric_table import BOLD, MetricValue, interval, table

Files = Mapping[str, Mapping[str, Any]]  # file -> its record
WIDTH = 5  # metrics per table
LEAST_P = 0.001  # smallest p that is shown
TEXT_SHOWN = 60  # characters of a prediction
LISTS = {
    "missing": "samples without a prediction, which count as empty",
    "unknown": "predictions without a reference, which are ignored",
    "empty": "empty predictions",
    "unreadable": "broken lists of words, treated as descriptions (in .npz: split at quotes and commas)",
}


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Map each path to its shortest suffix (of whole path components) that no other path ends with."""
    parts = {path: path.split("/") for path in paths}
    names = {}
    for path, own in parts.items():
        others = [components for other_path, components in parts.items() if other_path != path]
        depth = next((n for n in range(1, len(own)) if all(components[-n:] != own[-n:] for components in others)), len(own))
        names[path] = "/".join(own[-depth:])
    return names


def path_lines(short: Mapping[str, str]) -> list[str]:
    """Return one line for each short name that differs from its path."""
    return [f"{name} is {path}" for path, name in short.items() if name != path]


def task_text(task: str, files: Files) -> Iterator[str]:
    """Yield the lines of all tables of one task."""
    first, *others = files
    metrics = [
        name
        for name in files[first]["estimates"]
        if any(_has_value(record, name) or _failed(record, name) for record in files.values())
    ]
    labels = f"; labels {' '.join(files[first]['recognition']['labels'])}" if "recognition" in files[first] else ""
    tokenizer = f"; tokenizer: {files[first]['captions']['tokenizer']}" if "captions" in files[first] else ""
    yield f"{f'task {task}' if task else _description(files[first])}: {files[first]['clips']} samples{labels}{tokenizer}"
    if not metrics:
        yield "no metrics: descriptions need a judge, --judge"
    parts = [metrics[start : start + WIDTH] for start in range(0, len(metrics), WIDTH)]
    lines = [line for part in parts for line in ("", *values(files, part))]
    yield from lines
    legend = [BOLD] if any("**" in line for line in lines) else []
    legend += [f"{name}: {_title(name)}" for name in metrics if _title(name).lower().replace("-", " ") != name.replace("_", " ")]
    legend += [f"{file}: {name}: {reason}" for file, record in files.items() for name, reason in _without_value(record, metrics)]
    yield from ["", *legend] if legend else []
    if others and metrics:
        yield ""
        yield f"Differences from {first}, over the samples that both have scores for: 95% interval, two-sided p (samples)"
        for part in parts:
            yield ""
            yield from differences({file: files[file] for file in others}, part)
    yield ""


def values(files: Files, metrics: Sequence[str]) -> list[str]:
    """Return a table with one row per file: the value of each metric, its interval, and how many samples have a score."""
    entries = []
    for file, record in files.items():
        for name in metrics:
            estimate, total = record["estimates"][name], record["clips"]
            note = f"{estimate['clips']} of {total} samples" if estimate["clips"] < total else ""
            entries.append(MetricValue((file,), "", "", name, estimate["value"], estimate["low"], estimate["high"], note))
    return table(("",), entries)


def differences(files: Files, metrics: Sequence[str]) -> list[str]:
    """Return a table with one row per file: the difference of each metric from the first file, its interval, p and samples."""
    rows = [["", *metrics]]
    for file, record in files.items():
        per_metric = [(name, record["differences"][name]) for name in metrics]
        rows.append([file, *(_signed(name, difference["value"]) for name, difference in per_metric)])
        rows.append(["", *(interval(name, difference["low"], difference["high"]) or "-" for name, difference in per_metric)])
        rows.append(["", *(_p_text(difference) for _, difference in per_metric)])
    return markdown_table(rows)


def counts(files: Files) -> list[str]:
    """Return a table with one row per file: numbers of answered, missing, empty, ignored, invalid and unscored samples."""
    rows = [["", "answered", "missing", "empty", "no reference", "invalid", "judge failed"]]
    for file, record in files.items():
        missing, empty, unknown = (len(record[key]) for key in ("missing", "empty", "unknown"))
        invalid = len(record["recognition"]["invalid"]) if "recognition" in record else "-"
        by_metric = Counter(row["metric"] for row in record["judge"]["failures"]) if "judge" in record else {}
        failed = ", ".join(f"{name} {number}" for name, number in by_metric.items()) or ("0" if "judge" in record else "-")
        answered = record["clips"] - missing - empty
        rows.append([file, *map(str, (answered, missing, empty, unknown, invalid, failed))])
    return markdown_table(rows)


def name_lists(files: Files) -> Iterator[str]:
    """Yield the first few names behind each of the counts."""
    for file, record in files.items():
        for key, title in LISTS.items():
            yield from _listed(f"{file}: {title}", record[key], ", ")
        invalid = record["recognition"]["invalid"] if "recognition" in record else []
        lines = [f"{row['name']} {row['prediction'][:TEXT_SHOWN]!r}" for row in invalid]
        yield from _listed(f"{file}: predictions without a valid label", lines, "; ")
        failures = record["judge"]["failures"] if "judge" in record else []
        lines = [f"{row['name']} ({row['metric']}): {row['failure']}" for row in failures]
        yield from _listed(f"{file}: no score from the judge", lines, "; ")


def published() -> list[str]:
    """Return the table of results published for EMER, with the note that they are not comparable."""
    rows = [["", "clue_overlap", "label_overlap"]]
    rows += [[model, *(f"{value:.2f}" for value in pair)] for model, pair in EMER.items()]
    return [*CAUTION, "", *markdown_table(rows)]


def judge_line(judge: Mapping[str, Any]) -> str:
    """Return a line with the judge's name and usage."""
    usage = {key.replace("_", " "): value for key, value in judge.items() if key != "name" and value is not None}
    if "failed" in usage:
        usage["failed"] = f"{usage['failed']} (questions without a usable reply)"
    items = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in usage.items())
    return f"judge {judge['name']}: {', '.join(items)}"


def _has_value(record: Mapping[str, Any], name: str) -> bool:
    return record["estimates"][name]["value"] is not None


def _failed(record: Mapping[str, Any], name: str) -> list[str]:
    """Return why samples have no score of a metric, one reason per sample."""
    failures = record["judge"]["failures"] if "judge" in record else []
    return [row["failure"] for row in failures if row["metric"] == name]


def _without_value(record: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (metric, reason) for each metric that has no value because the judge failed on every sample."""
    for name in metrics:
        if not _has_value(record, name) and (reasons := Counter(_failed(record, name)).most_common(1)):
            yield name, f"no sample has a score; most frequent reason: {reasons[0][0]} ({reasons[0][1]} samples)"


def _description(record: Mapping[str, Any]) -> str:
    """Return a name for predictions without a task, based on their metrics."""
    contents = [input_type(name).content for name in record["estimates"]]
    return " and ".join(sorted({*filter(None, contents)})) or "descriptions"


def _title(name: str) -> str:
    title = metric(name).title
    return title if metric(name).higher_is_better else f"{title}; lower is better"


def _signed(name: str, difference: float | None) -> str:
    return "-" if difference is None else f"{difference:+.{metric_digits(name)}f}"


def _p_text(difference: Mapping[str, Any]) -> str:
    """Return p and the number of samples; a p below the resolution of the resamples or of the table is an upper bound."""
    if difference["p"] is None:
        return "-"
    if difference["at_most"] or difference["p"] < LEAST_P:
        return f"p <= {ceil(difference['p'] / LEAST_P) * LEAST_P:.3f} ({difference['clips']})"
    return f"p {difference['p']:.3f} ({difference['clips']})"


def _listed(title: str, items: Sequence[str], separator: str) -> Iterator[str]:
    if items:
        yield f"{title} ({len(items)}): {abbreviated(items, separator, where='--output lists all')}"

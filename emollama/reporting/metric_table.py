"""Metrics in long format, and the table that commands print of them.

A subject is what is compared: a checkpoint of a run, a run at one of its epochs, or a file of predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emollama.logs.console import markdown_table
from emollama.reporting.measures import format_metric, higher_is_better, metric_digits

Subject = tuple[str, ...]  # the cells that name it in a table
Column = tuple[str, str, str]  # dataset, task and metric
BOLD = "**Bold**: best value of the column."


@dataclass(frozen=True)
class MetricValue:
    """The value of one metric.

    Attributes:
        subject: what was evaluated.
        dataset: name of the evaluation block.
        task: name of the task.
        metric: name of the metric.
        value: the value; None if it is undefined.
        low, high: ends of its confidence interval; None if it was not computed.
        note: what is printed below the value.
    """

    subject: Subject
    dataset: str
    task: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def column(self) -> Column:
        """The column of a table with one row per subject."""
        return self.dataset, self.task, self.metric


def metric_value(subject: Subject, key: str, value: float | None) -> MetricValue:
    """Return the value of a metric with the key ``<block>/<task>/<metric>``."""
    group, _, metric = key.rpartition("/")
    dataset, _, task = group.partition("/")
    return MetricValue(subject, dataset, task, metric, value)


def best_subjects(values: Sequence[MetricValue]) -> dict[Column, list[Subject]]:
    """Return the subjects with the best value of each column, unless its direction is unknown or all shown values are equal."""
    best: dict[Column, list[Subject]] = {}
    for column in dict.fromkeys(entry.column for entry in values):
        better = higher_is_better(column[2])
        defined = {entry.subject: entry.value for entry in values if entry.column == column and entry.value is not None}
        if better is not None and len({format_metric(column[2], value) for value in defined.values()}) > 1:
            best_value = (max if better else min)(defined.values())
            best[column] = [subject for subject, value in defined.items() if value == best_value]
    return best


def tables(head: Subject, values: Sequence[MetricValue]) -> Iterator[str]:
    """Yield the lines of Markdown tables, one for each dataset and task, below the names of both.

    Args:
        head: names of the cells of a subject.
        values: the values. Subjects, groups and metrics have the order in which they occur.
    """
    for group in dict.fromkeys(entry.column[:2] for entry in values):
        if lines := table(head, [entry for entry in values if entry.column[:2] == group]):
            yield from ["/".join(filter(None, group)), "", *lines, ""]
    if best_subjects(values):
        yield BOLD


def table(head: Subject, values: Sequence[MetricValue]) -> list[str]:
    """Return the lines of the Markdown table of one dataset and task, with the best values in bold.

    Args:
        head: names of the cells of a subject.
        values: the values. A subject that has none has no row.
    """
    best = best_subjects(values)
    columns = list(dict.fromkeys(entry.column for entry in values))
    rows = [[*head, *(metric for _, _, metric in columns)]]
    for subject in dict.fromkeys(entry.subject for entry in values if entry.value is not None or entry.note):
        own = {entry.column: entry for entry in values if entry.subject == subject}
        entries = [own.get(column, MetricValue(subject, *column, None)) for column in columns]
        rows.append([*subject, *(_shown(entry, is_best=subject in best.get(entry.column, ())) for entry in entries)])
        for below in ([interval(entry.metric, entry.low, entry.high) for entry in entries], [entry.note for entry in entries]):
            rows += [[*("" for _ in head), *below]] if any(below) else []
    return markdown_table(rows, left=range(len(head))) if len(rows) > 1 else []


def _shown(entry: MetricValue, *, is_best: bool) -> str:
    if entry.value is None:
        return "-"
    shown = format_metric(entry.metric, entry.value)
    return f"**{shown}**" if is_best else shown


def interval(metric: str, low: float | None, high: float | None) -> str:
    """Return a confidence interval as text, with one digit less than the value for fractions and losses; "" without one."""
    digits = min(metric_digits(metric), 3)
    return "" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"

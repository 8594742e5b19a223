"""Metrics in long format, and the table that commands print of them.

A subject is what is compared: a checkpoint of a run, a run at one of its epochs, or a file of predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emollama.logs.console import markdown_table
from emollama.reporting.measures import format_metric, higher_is_better

Subject = tuple[str, ...]  # the cells that name it in a table
Column = tuple[str, str, str]  # dataset, task and metric


@dataclass(frozen=True)
class MetricValue:
    """The value of one metric.

    Attributes:
        subject: what was evaluated.
        dataset: name of the evaluation block.
        task: name of the task.
        metric: name of the metric.
        value: the value; None if it is undefined.
    """

    subject: Subject
    dataset: str
    task: str
    metric: str
    value: float | None

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
    """Yield the lines of Markdown tables, one for each dataset and task, with the best values in bold.

    Args:
        head: names of the cells of a subject.
        values: the values. Subjects, groups and metrics have the order in which they occur; a subject without a value in a group
            has no row there.
    """
    best = best_subjects(values)
    for group in dict.fromkeys(entry.column[:2] for entry in values):
        own = {(entry.subject, entry.metric): entry.value for entry in values if entry.column[:2] == group}
        subjects = dict.fromkeys(subject for subject, _ in own)
        metrics = list(dict.fromkeys(metric for _, metric in own))
        rows = [[*head, *metrics]]
        for subject in subjects:
            if any(own.get((subject, metric)) is not None for metric in metrics):
                bold = [subject in best.get((*group, metric), ()) for metric in metrics]
                cells = [format_metric(metric, own.get((subject, metric))) for metric in metrics]
                rows.append([*subject, *(f"**{cell}**" if is_best else cell for cell, is_best in zip(cells, bold, strict=True))])
        if len(rows) > 1:
            yield "/".join(filter(None, group))
            yield ""
            yield from markdown_table(rows, left=range(len(head)))
            yield ""
    if best:
        yield "**Bold**: best value of the column."

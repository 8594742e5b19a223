"""Comparison of several runs: their metrics, the settings in which they differ, and their metrics by epoch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.json_io import Notes, text
from emollama.listing import abbreviated
from emollama.reporting.configuration import parse_config
from emollama.reporting.metric_table import MetricValue, metric_value
from emollama.reporting.panels import Line, Panel, metric_panel
from emollama.reporting.run_files import RunFiles, best_validation, metrics_by_key, read_run
from emollama.reporting.settings import settings_that_differ
from emollama.run_folder import CONFIG, RESULT
from emollama.suggestions import did_you_mean

SUBJECT = ("run", "results", "epoch")


@dataclass(frozen=True)
class Standing:
    """The metrics of a run at one of its checkpoints.

    Attributes:
        run: name of the run.
        source: "evaluation" (by the script), "best" or "last" validation, or "best, last" if these are the same.
        epoch: epoch of the validation; None for an evaluation by the script.
        checkpoint: the evaluated checkpoint; "" if the files do not state it.
        metrics: ``<block>/<task>/<metric>`` -> value.
    """

    run: str
    source: str
    epoch: int | None
    checkpoint: str
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class RunComparison:
    """The comparison of several runs.

    Attributes:
        runs: name -> run, in the order of the command line.
        keys: ``<block>/<task>/<metric>`` of all compared metrics.
        standings: at least one for each run.
        settings: dotted key -> run -> value, for keys in which configurations differ; without runs that lack the key, and for
            keys that only affect training without runs that were not trained.
        notes: messages about missing values.
    """

    runs: dict[str, RunFiles]
    keys: list[str]
    standings: list[Standing]
    settings: dict[str, dict[str, Any]]
    notes: Notes


def compare_runs(folders: Sequence[Path], metrics: Sequence[str] = ()) -> RunComparison:
    """Compare runs.

    Args:
        folders: folders of the runs.
        metrics: names of the metrics to compare; empty for all metrics of all runs.

    Raises:
        UserError: If there are fewer than two runs, a run is named twice, a folder is not a run's folder, or no run has a metric.
    """
    runs = dict(zip(distinct_names(folders), (read_run(folder, answers=False) for folder in folders), strict=True))
    standings = [standing for name, run in runs.items() for standing in _standings(name, run)]
    every = [
        *(standing.metrics for standing in standings),
        *(validation.metrics for run in runs.values() for validation in run.validations),
    ]
    keys = _selected_keys(list(dict.fromkeys(chain(*every))), metrics)
    notes = [*chain(*(run.notes for run in runs.values())), *_missing_values(runs, keys, standings), *_tokenizer_notes(runs)]
    configs = {name: config for name, run in runs.items() if (config := _config(run, notes)) is not None}
    trained = [name for name, run in runs.items() if run.trained]
    return RunComparison(runs, keys, standings, dict(settings_that_differ(configs, trained)), notes)


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with as many parent folders as needed to tell equal names apart.

    Raises:
        UserError: If there are fewer than two folders, or one is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    if len(paths) < 2:
        raise UserError("expected the folders of at least two runs to compare")
    if repeated := [str(path) for path in paths if paths.count(path) > 1]:
        raise UserError(f"'{repeated[0]}' is named twice. Specify each run once.")
    names = []
    for path in paths:
        same = [candidate for candidate in paths if candidate.name == path.name]
        depth = next(
            deep for deep in range(1, len(path.parts) + 1) if len({candidate.parts[-deep:] for candidate in same}) == len(same)
        )
        names.append(os.path.join(*path.parts[-depth:]))
    return names


def comparison_panels(comparison: RunComparison) -> list[Panel]:
    """Return one panel per metric with one line per run, panels by epoch first; results of the script are horizontal lines.

    Metrics with a single value are left out, because there is nothing to compare.
    """
    levels = {standing.run: standing.metrics for standing in comparison.standings if standing.epoch is None}
    panels = []
    for key in comparison.keys:
        lines = []
        for name, run in comparison.runs.items():
            points = [(record.epoch, value) for record in run.validations if (value := record.metrics.get(key)) is not None]
            lines.append(Line(name, points, levels.get(name, {}).get(key)))
        if sum(len(line.points) + (line.level is not None) for line in lines) > 1:
            panels.append(metric_panel(key, lines))
    return sorted(panels, key=lambda panel: not any(line.points for line in panel.lines))


def comparison_values(comparison: RunComparison) -> list[MetricValue]:
    """Return all values of a comparison; its subjects have the cells :data:`SUBJECT`."""
    values = []
    for standing in comparison.standings:
        epoch = "-" if standing.epoch is None else str(standing.epoch)
        values += [
            metric_value((standing.run, standing.source, epoch), key, standing.metrics.get(key)) for key in comparison.keys
        ]
    return values


def _standings(name: str, run: RunFiles) -> Iterator[Standing]:
    if run.results and run.results_epoch is None:
        checkpoints = dict.fromkeys(result.checkpoint for result in run.results if result.checkpoint)
        yield Standing(name, "evaluation", None, ", ".join(checkpoints), metrics_by_key(run.results))
    best = best_validation(run.validations)
    last = run.validations[-1] if run.validations else None
    if best and best is not last:
        yield Standing(name, "best", best.epoch, "", best.metrics)
    if last:
        yield Standing(name, "best, last" if best is last else "last", last.epoch, "", last.metrics)
    if not last and (not run.results or run.results_epoch is not None):
        yield Standing(name, "no results", None, "", {})


def _selected_keys(keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
    for name in metrics:
        if name not in names:
            available = f"Available metrics: {abbreviated(names)}" if names else "The runs have no metrics."
            raise UserError(f"--metric: none of the runs has '{name}'.{did_you_mean(name, names)} {available}")
    return [key for key in keys if not metrics or key.rpartition("/")[2] in metrics]


def _missing_values(runs: Mapping[str, RunFiles], keys: Sequence[str], standings: Sequence[Standing]) -> Iterator[str]:
    """Yield a message for each run that lacks metrics at all of its checkpoints: all metrics of a task, or some of them."""
    for name, run in runs.items():
        for result in run.results:
            if error := text(result.judge.get("unreachable")):
                yield f"{name}: {result.block}/{result.task}: the judge could not be reached: {error}"
        own = {
            key for standing in standings if standing.run == name for key, value in standing.metrics.items() if value is not None
        }
        tasks = {key.rpartition("/")[0] for key in own}
        missing = dict.fromkeys(
            key if key.rpartition("/")[0] in tasks else key.rpartition("/")[0].rstrip("/") for key in keys if key not in own
        )
        if not own:
            yield f"{name}: no metrics in result/metrics_*.json and eval.jsonl. Evaluate the run."
        elif missing:
            yield f"{name}: missing metrics: {abbreviated(missing)}"


def _tokenizer_notes(runs: Mapping[str, RunFiles]) -> Iterator[str]:
    """Yield a message for each task whose captions were split by different tokenizers, because their scores differ slightly."""
    tokenizers: dict[str, dict[str, str]] = {}
    for name, run in runs.items():
        for result in run.results:
            if result.tokenizer:
                tokenizers.setdefault(f"{result.block}/{result.task}", {})[name] = result.tokenizer
    for task, by_run in tokenizers.items():
        if len(set(by_run.values())) > 1:
            listed = ", ".join(f"{name} by {tokenizer}" for name, tokenizer in by_run.items())
            yield f"{task}: scores are not exactly comparable, because different tokenizers split the captions: {listed}"


def _config(run: RunFiles, notes: Notes) -> dict[str, Any] | None:
    """Return the run's configuration with unresolved references; None if it is missing or invalid."""
    raw = run.configs.get(CONFIG) or run.configs.get(f"{RESULT}/{CONFIG}")
    if raw is None:
        notes.append(f"{run.folder}: no {CONFIG}, so its settings are not compared")
        return None
    config = parse_config(raw)
    if config is None:
        notes.append(f"{run.folder / CONFIG}: not valid YAML, so its settings are not compared")
    return config

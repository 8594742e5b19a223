"""Several runs side by side: their figures, the settings in which they differ, and their metrics by epoch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.registry import did_you_mean
from emollama.reporting.configuration import CONFIG, RESULT, parsed
from emollama.reporting.json_io import Notes, text
from emollama.reporting.measures import block_and_task, higher_is_better, title_of
from emollama.reporting.panels import Line, Panel
from emollama.reporting.run_files import RunFiles, best_validation, by_key, read_run
from emollama.reporting.settings import settings_that_differ


@dataclass(frozen=True)
class Standing:
    """Figures of a run at one of its checkpoints.

    Attributes:
        run: its name.
        of: "evaluation" by the script, the "best" validation, the "last" one, or "best, last" where these are one.
        epoch: of the validation; None of an evaluation by the script.
        checkpoint: that was evaluated; "" where the files do not say.
        metrics: ``<block>/<task>/<metric>`` -> value.
    """

    run: str
    of: str
    epoch: int | None
    checkpoint: str
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class RunComparison:
    """What is known of several runs.

    Attributes:
        runs: name -> the run, in the order in which they were named.
        keys: ``<block>/<task>/<metric>`` of all that are compared.
        standings: at least one for each run.
        settings: dotted key -> run -> its value, of the keys in which configurations differ; without runs that lack the key, and
            of keys about training without runs that did not train.
        notes: what is missing.
    """

    runs: dict[str, RunFiles]
    keys: list[str]
    standings: list[Standing]
    settings: dict[str, dict[str, Any]]
    notes: Notes


def compared(folders: Sequence[Path], metrics: Sequence[str] = ()) -> RunComparison:
    """Compare runs.

    Args:
        folders: of the runs.
        metrics: names of metrics; empty: all that any of the runs has.

    Raises:
        UserError: fewer than two runs, one named twice, a folder that is no run's, a metric that no run has.
    """
    runs = dict(zip(distinct_names(folders), (read_run(folder, answers=False) for folder in folders), strict=True))
    standings = [standing for name, run in runs.items() for standing in _standings(name, run)]
    every = [
        *(standing.metrics for standing in standings),
        *(found.metrics for run in runs.values() for found in run.validations),
    ]
    keys = _chosen(list(dict.fromkeys(chain(*every))), metrics)
    notes = [*chain(*(run.notes for run in runs.values())), *_lacking(runs, keys, standings), *_split_apart(runs)]
    configs = {name: config for name, run in runs.items() if (config := _config(run, notes)) is not None}
    trained = [name for name, run in runs.items() if run.trained]
    return RunComparison(runs, keys, standings, dict(settings_that_differ(configs, trained)), notes)


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; where two are the same, with as much of the way to them as tells them apart.

    Raises:
        UserError: fewer than two folders, or one that is named twice.
    """
    places = [folder.resolve() for folder in folders]
    if len(places) < 2:
        raise UserError("one run is nothing to compare: name the folders of two runs or more")
    if twice := [str(place) for place in places if places.count(place) > 1]:
        raise UserError(f"'{twice[0]}' is named twice. Name each run once.")
    names = []
    for place in places:
        same = [other for other in places if other.name == place.name]
        depth = next(deep for deep in range(1, len(place.parts) + 1) if len({other.parts[-deep:] for other in same}) == len(same))
        names.append(os.path.join(*place.parts[-depth:]))
    return names


def panels_of(comparison: RunComparison) -> list[Panel]:
    """A panel a metric with a line a run, those by epoch first; what the script evaluated is a level.

    Metrics that a single run has at a single checkpoint are left out: there is nothing to compare.
    """
    levels = {found.run: found.metrics for found in comparison.standings if found.epoch is None}
    panels = []
    for key in comparison.keys:
        lines = []
        for name, run in comparison.runs.items():
            points = [(found.epoch, value) for found in run.validations if (value := found.metrics.get(key)) is not None]
            lines.append(Line(name, points, levels.get(name, {}).get(key)))
        metric = key.rpartition("/")[2]
        if sum(len(line.points) + (line.level is not None) for line in lines) > 1:
            panels.append(Panel(title_of(metric), block_and_task(key), higher_is_better(metric), lines))
    return sorted(panels, key=lambda panel: not any(line.points for line in panel.lines))


def leaders(comparison: RunComparison, key: str) -> list[Standing]:
    """Those that are best in a metric; none where fewer than two have it, or nobody knows which way is better."""
    better = higher_is_better(key.rpartition("/")[2])
    values = [value for found in comparison.standings if (value := found.metrics.get(key)) is not None]
    if better is None or len(values) < 2:
        return []
    best = max(values) if better else min(values)
    return [found for found in comparison.standings if found.metrics.get(key) == best]


def _standings(name: str, run: RunFiles) -> Iterator[Standing]:
    if run.results and run.results_epoch is None:
        checkpoints = dict.fromkeys(result.checkpoint for result in run.results if result.checkpoint)
        yield Standing(name, "evaluation", None, ", ".join(checkpoints), by_key(run.results))
    best = best_validation(run.validations)
    last = run.validations[-1] if run.validations else None
    if best and best is not last:
        yield Standing(name, "best", best.epoch, "", best.metrics)
    if last:
        yield Standing(name, "best, last" if best is last else "last", last.epoch, "", last.metrics)
    if not last and (not run.results or run.results_epoch is not None):
        yield Standing(name, "no figures", None, "", {})


def _chosen(keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
    for name in metrics:
        if name not in known:
            told = f"They have: {abbreviated(known)}" if known else "They have no metrics at all."
            raise UserError(f"--metric: none of the runs has '{name}'.{did_you_mean(name, known)} {told}")
    return [key for key in keys if not metrics or key.rpartition("/")[2] in metrics]


def _lacking(runs: Mapping[str, RunFiles], keys: Sequence[str], standings: Sequence[Standing]) -> Iterator[str]:
    """Which figures a run does not have at any of its checkpoints: of a block's task altogether, or single ones."""
    for name, run in runs.items():
        for result in run.results:
            if error := text(result.judge.get("unreachable")):
                yield f"{name}: {result.block}/{result.task}: the judge could not be reached: {error}"
        own = {key for found in standings if found.run == name for key, value in found.metrics.items() if value is not None}
        places = {key.rpartition("/")[0] for key in own}
        missing = dict.fromkeys(
            key if key.rpartition("/")[0] in places else key.rpartition("/")[0].rstrip("/") for key in keys if key not in own
        )
        if not own:
            yield f"{name}: no figures: neither result/metrics_*.json nor a line of eval.jsonl. Evaluate it."
        elif missing:
            yield f"{name}: has no {abbreviated(missing)}"


def _split_apart(runs: Mapping[str, RunFiles]) -> Iterator[str]:
    """Tasks whose captions were split into words in several ways, so that their figures are not quite comparable."""
    ways: dict[str, dict[str, str]] = {}
    for name, run in runs.items():
        for result in run.results:
            if result.tokenizer:
                ways.setdefault(f"{result.block}/{result.task}", {})[name] = result.tokenizer
    for place, by_run in ways.items():
        if len(set(by_run.values())) > 1:
            told = ", ".join(f"{name} by {way}" for name, way in by_run.items())
            yield f"{place}: captions were split into words in different ways, their figures are not quite comparable: {told}"


def _config(run: RunFiles, notes: Notes) -> dict[str, Any] | None:
    """A run's configuration, unresolved; None where it has none that can be read."""
    raw = run.configs.get(CONFIG) or run.configs.get(f"{RESULT}/{CONFIG}")
    if raw is None:
        notes.append(f"{run.folder}: no {CONFIG}: its settings are not known")
        return None
    found = parsed(raw)
    if found is None:
        notes.append(f"{run.folder / CONFIG}: not valid YAML: its settings are not known")
    return found

"""The summary at the top of a report, and the versions of the installation."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import emollama
from emollama.reporting.json_io import number, text, whole_number
from emollama.reporting.run_files import RunFiles, best_validation

PACKAGES = ("torch", "transformers", "peft", "numpy")


def summary_rows(run: RunFiles) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of the entries for a run."""
    epoch = run.results_epoch
    if run.results:
        yield "Results of", "the evaluation script" if epoch is None else f"the validation at epoch {epoch}"
        checkpoints = dict.fromkeys(result.checkpoint for result in run.results if result.checkpoint)
        unnamed = "unknown: the files do not name it" if epoch is None else f"the weights after epoch {epoch}"
        yield "Evaluated checkpoint", ", ".join(checkpoints) or unnamed
    if judges := dict.fromkeys(_judge(result.judge) for result in run.results if "name" in result.judge):
        yield "Judge", ", ".join(judges)
    if run.validations:
        best = best_validation(run.validations)
        yield "Validations", f"{len(run.validations)}" + (f", best at epoch {best.epoch}" if best else "")
    if run.steps:
        yield from _training(run.steps)


def _judge(judge: Mapping[str, Any]) -> str:
    return text(judge["name"]) + (" (could not be reached)" if judge.get("unreachable") else "")


def _training(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    last = steps[-1]
    epoch = whole_number(last.get("epoch"))
    yield "Last logged step", f"{last['step']:,}" + ("" if epoch is None else f" (epoch {epoch})")
    if skipped := _column(steps, "skipped_steps"):
        yield "Skipped steps", f"{max(skipped):,.0f}"
    speeds = [
        f"{statistics.median(values):,.{1 if unit == 'samples' else 0}f} {unit}/s"
        for unit in ("samples", "tokens")
        if (values := _column(steps, f"{unit}_per_s"))
    ]
    if speeds:
        yield "Median speed", ", ".join(speeds)
    if memory := _column(steps, "peak_memory_gib"):
        yield "Peak memory", f"{max(memory):,.1f} GiB"


def _column(steps: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [value for row in steps if (value := number(row.get(name))) is not None]


def versions() -> Iterator[tuple[str, str]]:
    """Yield (package, version) of this installation, without importing the packages."""
    yield "Python", platform.python_version()
    yield "emollama", emollama.__version__
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"

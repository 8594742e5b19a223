"""The summary at the top of a report, and the versions of the installation."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import emollama
from emollama.json_io import text
from emollama.reporting.run_files import RunFiles, best_validation
from emollama.run_folder import StepRecord

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


def _training(steps: Sequence[StepRecord]) -> Iterator[tuple[str, str]]:
    last = steps[-1]
    yield "Last logged step", f"{last.step:,}" + ("" if last.epoch is None else f" (epoch {last.epoch})")
    if skipped := [record.skipped_steps for record in steps if record.skipped_steps is not None]:
        yield "Skipped steps", f"{max(skipped):,.0f}"
    samples = [record.samples_per_s for record in steps if record.samples_per_s is not None]
    tokens = [record.tokens_per_s for record in steps if record.tokens_per_s is not None]
    speeds = [
        f"{statistics.median(values):,.{digits}f} {unit}/s"
        for values, digits, unit in ((samples, 1, "samples"), (tokens, 0, "tokens"))
        if values
    ]
    if speeds:
        yield "Median speed", ", ".join(speeds)
    if memory := [record.peak_memory_gib for record in steps if record.peak_memory_gib is not None]:
        yield "Peak memory", f"{max(memory):,.1f} GiB"


def versions() -> Iterator[tuple[str, str]]:
    """Yield (package, version) of this installation, without importing the packages."""
    yield "Python", platform.python_version()
    yield "emollama", emollama.__version__
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"

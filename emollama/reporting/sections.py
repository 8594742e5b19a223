"""The sections of a report, one per task of each block."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emollama.json_io import mapping, objects, text
from emollama.reporting.configuration import changed_settings, ensemble_note, evaluated_blocks, evaluated_with
from emollama.reporting.confusion import confusion_matrix
from emollama.reporting.measures import metric_title
from emollama.reporting.plotting import DPI
from emollama.reporting.run_files import RunFiles, TaskResult
from emollama.reporting.samples import ReportSample, select_samples


@dataclass(frozen=True)
class Picture:
    """A plot in a report.

    Attributes:
        file: name of the PNG file.
        png: the image.
        description: alternative text.
    """

    file: str
    png: bytes
    description: str

    @property
    def source(self) -> str:
        """The image as a data URL for an ``img`` element."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def width(self) -> int:
        """Width in CSS pixels at which fonts have the size in which they were drawn."""
        pixels = int.from_bytes(self.png[16:20])  # the width in the PNG's first chunk
        return round(pixels * 96 / DPI)


@dataclass(frozen=True)
class ReportSection:
    """The section about one task of a block.

    Attributes:
        result: results of the task.
        samples: answers to show.
        confusion: plot of the confusion matrix; None for tasks without labels.
        unusual: settings that affect the meaning of the scores.
    """

    result: TaskResult
    samples: list[ReportSample]
    confusion: Picture | None
    unusual: list[str]

    @property
    def num_samples(self) -> int:
        """Number of answers."""
        return len(self.result.predictions) if self.result.num_samples is None else self.result.num_samples

    @property
    def instruction(self) -> str:
        """Prompt of the first sample."""
        return "".join(record.instruction for record in self.result.predictions[:1])

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Failed verdicts of the judge: name, metric, failure."""
        return objects(self.result.judge.get("failures"))

    @property
    def usage(self) -> dict[str, Any]:
        """Usage of the judge."""
        return {name: value for name, value in self.result.judge.items() if name not in ("name", "failures", "unreachable")}

    @property
    def unreachable(self) -> str:
        """Why the judge could not be reached; "" if it was reached or there is none."""
        return text(self.result.judge.get("unreachable"))

    @property
    def missing(self) -> str:
        """Titles of the metrics without a value."""
        return ", ".join(metric_title(name) for name, value in self.result.metrics.items() if value is None)

    @property
    def why_none(self) -> str:
        """Why there are no scores at all; "" if there are some, or if the judge could not be reached."""
        result = self.result
        if self.unreachable or any(value is not None for value in result.metrics.values()):
            return ""
        if result.predictions and not any(record.reference or record.target for record in result.predictions):
            references = {"emotion": "labels", "caption": "captions"}.get(result.task, "descriptions")
            return f"No scores: the data has no {references} to compare the answers with."
        return "No scores: every judgement failed." if self.failures else "No scores: the files contain none."


def report_sections(run: RunFiles) -> list[ReportSection]:
    """Return one section for each task of each block with results."""
    tree = evaluated_with(run.configs, run.results_epoch)
    blocks = evaluated_blocks(tree)
    # During training, the configuration names the checkpoints that training started from, not an ensemble.
    ensemble = list(ensemble_note(tree)) if run.results_epoch is None else []
    return [_section(result, mapping(blocks.get(result.block)), ensemble) for result in run.results]


def picture(name: str, png: bytes | None, description: str) -> Picture | None:
    """Return a picture; None without a plot."""
    return Picture(name, png, description) if png else None


def _section(result: TaskResult, keys: Mapping[str, Any], ensemble: list[str]) -> ReportSection:
    recognition, confusion = result.recognition, None
    if recognition and recognition.confusion:
        name = re.sub(r"[^\w+-]", "_", f"confusion_{result.block}_{result.task}")[:100] + ".png"
        png = confusion_matrix(recognition.labels, recognition.confusion)
        confusion = picture(name, png, f"Confusion matrix of {result.block}, {result.task}: one row per true label")
    tokenizer = [f"tokenizer: {result.tokenizer}"] if result.tokenizer else []
    unusual = [*changed_settings(keys, result.task), *ensemble, *tokenizer]
    return ReportSection(result, select_samples(result, keys), confusion, unusual)

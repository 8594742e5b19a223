"""The parts of a report that are about one task of a block."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emollama.reporting.configuration import blocks_of, ensemble_of, evaluated_with, unusual_of
from emollama.reporting.confusion import confusion_matrix
from emollama.reporting.json_io import mapping, objects, text
from emollama.reporting.measures import title_of
from emollama.reporting.plotting import DPI
from emollama.reporting.run_files import RunFiles, TaskResult
from emollama.reporting.samples import ReportSample, samples_of


@dataclass(frozen=True)
class Picture:
    """A plot: the file that it is in, and what it shows."""

    file: str
    png: bytes
    words: str

    @property
    def source(self) -> str:
        """The image itself, as the address of an ``img``."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def width(self) -> int:
        """How wide a page shows it, in CSS pixels, so that its letters have the size that they were drawn with."""
        pixels = int.from_bytes(self.png[16:20])  # the width in the PNG's first chunk
        return round(pixels * 96 / DPI)


@dataclass(frozen=True)
class ReportSection:
    """What a report says of one task of a block; ``unusual`` is what else its scores' meaning depends on."""

    result: TaskResult
    samples: list[ReportSample]
    confusion: Picture | None
    unusual: list[str]

    @property
    def clips(self) -> int:
        """How many answers there are."""
        return len(self.result.predictions) if self.result.clips is None else self.result.clips

    @property
    def instruction(self) -> str:
        """What the first clip was asked."""
        return "".join(text(row.get("instruction")) for row in self.result.predictions[:1])

    @property
    def failures(self) -> list[dict[str, Any]]:
        """What a judge could not say: name, metric, failure."""
        return objects(self.result.judge.get("failures"))

    @property
    def usage(self) -> dict[str, Any]:
        """What judging took."""
        return {name: value for name, value in self.result.judge.items() if name not in ("name", "failures", "unreachable")}

    @property
    def unreachable(self) -> str:
        """Why the judge could not be reached; "" where it was, or nobody was to judge."""
        return text(self.result.judge.get("unreachable"))

    @property
    def missing(self) -> str:
        """The metrics without a value, as tables show their names."""
        return ", ".join(title_of(name) for name, value in self.result.metrics.items() if value is None)

    @property
    def why_none(self) -> str:
        """Why there is no score at all; "" where there is one, or the judge could not be reached."""
        result = self.result
        if self.unreachable or any(value is not None for value in result.metrics.values()):
            return ""
        if result.predictions and not any(row.get(key) for row in result.predictions for key in ("reference", "target")):
            truth = {"emotion": "labels", "caption": "captions"}.get(result.task, "descriptions")
            return f"Answers only: the data has no {truth} to compare with."
        return "Every judgement failed." if self.failures else "No scores in the files."


def sections_of(run: RunFiles) -> list[ReportSection]:
    """A section for each task of each block with results."""
    tree = evaluated_with(run.configs, run.results_epoch)
    blocks = blocks_of(tree)
    ensemble = list(ensemble_of(tree)) if run.results_epoch is None else []  # while training, that is where it began
    return [_section(result, mapping(blocks.get(result.block)), ensemble) for result in run.results]


def picture(name: str, png: bytes | None, words: str) -> Picture | None:
    """A plot, where there is one."""
    return Picture(name, png, words) if png else None


def _section(result: TaskResult, keys: Mapping[str, Any], ensemble: list[str]) -> ReportSection:
    found, confusion = result.recognition, None
    if found and found.confusion:
        name = re.sub(r"[^\w+-]", "_", f"confusion_{result.block}_{result.task}")[:100] + ".png"
        png = confusion_matrix(found.labels, found.confusion)
        confusion = picture(name, png, f"Confusion matrix of {result.block}, {result.task}: the truth by row")
    words = [f"tokenizer: {result.tokenizer}"] if result.tokenizer else []
    return ReportSection(result, samples_of(result, keys), confusion, [*unusual_of(keys, result.task), *ensemble, *words])

"""The evaluation blocks of a run: each answered, scored, and written. One path for the scripts and for validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emollama.config import EvaluationBlock, RunConfig
from emollama.data.loader import SampleDataset
from emollama.data.slots import FRAME, IMAGE
from emollama.errors import UserError
from emollama.evaluation.answers import Answer
from emollama.evaluation.prediction_files import write_metrics, write_predictions
from emollama.listing import abbreviated, listing
from emollama.logs.logger import get_logger
from emollama.runners.answering import Answering
from emollama.runners.build import build_datasets, is_ensemble

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation block.

    Attributes:
        dataset: its clips.
        options: the task's Config: how to answer.
        scoring: how to score.
    """

    dataset: SampleDataset
    options: Any
    scoring: Any


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave.

    Attributes:
        metrics: "block/task/metric" -> value; None where nothing could be computed.
        rows: block -> its answers, sorted by name and task.
        files: what was written.
        unreachable: block -> why its judge could not be asked, where it could not.
    """

    metrics: dict[str, float | None]
    rows: dict[str, Rows]
    files: list[Path]
    unreachable: dict[str, str]


def build_blocks(config: RunConfig, *, check: bool) -> dict[str, EvaluationSet]:
    """label -> block, of ``evaluation_datasets``; where there is none, of the clips that ``datasets`` hold out.

    Raises:
        UserError: no block, anything wrong with the data or with how it is to be scored.
    """
    task = config.classes["run.task"]
    blocks = {f"evaluation_datasets.{label}": block for label, block in config.evaluation_datasets.items()} or {
        f"datasets.{label}": EvaluationBlock(cfg, task.Config(), task.scoring.Config())
        for label, cfg in config.datasets.items()
        if getattr(cfg, "held_out", 0)
    }
    classes = {key: (config.classes[key], block.dataset) for key, block in blocks.items()}
    datasets = build_datasets(config, classes, training=False, check=check)
    slots = [slot for slot in config.classes["model"].slot_shapes(config.model) if slot != FRAME]
    made = {}
    for key, block in blocks.items():
        dataset = datasets[key]
        strange = [slot for slot in block.task.mask_slots if slot not in slots]
        if strange:
            raise UserError(f"{key}.mask_slots: no slots {listing(strange)}. This model has {abbreviated(slots)}.")
        if {*IMAGE} & {*block.task.mask_slots} and any(FRAME in source.slots for source in getattr(dataset, "features", ())):
            text = "image and class rows that the model makes of frames cannot be masked. Extract them: emollama extract"
            raise UserError(f"{key}.mask_slots: {text}")
        if block.task.num_beams > 1 and is_ensemble(config.model):
            raise UserError(f"{key}.num_beams: beams are searched with one model. Set num_beams: 1, or model.ensemble: weights.")
        given = {name: _comes_with(dataset, name, block.task) for name in dataset.pool.tasks}
        scoring = task.scoring(block.scoring, labels=dataset.cfg.labels, aliases=block.task.aliases, tasks=given, key=key)
        made[key.partition(".")[2]] = EvaluationSet(dataset, block.task, scoring)
    return made


def warn_of_training_clips(blocks: Mapping[str, EvaluationSet], trained: Mapping[str, SampleDataset]) -> None:
    """Warn of clips that are trained on and answered too, by their names: what is measured on them says little."""
    for label, block in blocks.items():
        names = set(block.dataset.names())
        for other, dataset in trained.items():
            if common := names & set(dataset.names()):
                text = "evaluation_datasets.%s: %d of its %d clips are trained on too (datasets.%s): set held_out in both blocks"
                get_logger().warning(text, label, len(common), len(names), other)


def _comes_with(dataset: SampleDataset, task: str, options: Any) -> list[str]:
    """What answers to a task come with: a reference where any clip has one, and then a loss in the layout of training."""
    if not dataset.has_reference(task):
        return []
    return ["reference", "loss"] if options.prompt_layout == "train" else ["reference"]


@dataclass(frozen=True)
class Evaluation:
    """Answers and scores blocks.

    Attributes:
        blocks: label -> block.
        answering: who answers.
        source: the checkpoint that answers, for the files; None while training.
    """

    blocks: dict[str, EvaluationSet]
    answering: Answering
    source: str | None

    def run(self, folder: Path) -> Outcome:
        """Answer every block, each clip once over all ranks, and write predictions and metrics into a folder.

        A judge that cannot be reached costs its metrics, which are None then.
        """
        world = self.answering.world
        outcome = Outcome({}, {}, [], {})
        for label, block in self.blocks.items():
            rows = self.answering.answers(label, block.dataset, block.options)
            outcome.files.extend(world.on_rank_zero(partial(write_predictions, folder, label, rows)))
            metrics, unreachable, path = world.on_rank_zero(partial(self._scored, folder, label, block, rows))
            outcome.metrics.update(metrics)
            outcome.unreachable.update(unreachable)
            outcome.files.append(path)
            outcome.rows[label] = rows
        return outcome

    def _scored(
        self, folder: Path, label: str, block: EvaluationSet, rows: Rows
    ) -> tuple[dict[str, float | None], dict[str, str], Path]:
        """Metrics by their long names, why the judge could not be asked, and the file written."""
        answers = [Answer(row["name"], row["task"], row["prediction"], row["reference"], row["loss"]) for row in rows]
        scores = block.scoring.score(answers, tolerant=True)
        metrics = {f"{label}/{task}/{name}": value for task, found in scores.items() for name, value in found.metrics.items()}
        missed = [found.judge["unreachable"] for found in scores.values() if "unreachable" in found.judge]
        unreachable = {label: missed[0]} if missed else {}
        return metrics, unreachable, write_metrics(folder, label, scores, self.source)

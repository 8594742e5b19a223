"""The dataset block that predictions for other videos use: its labels, instructions, features, sentences and decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from emollama.config import EvaluationBlock, RunConfig
from emollama.data.dataset import ClipDataset
from emollama.data.instructions import TASK_NAMES
from emollama.data.slots import PIXELS, FrameSelection
from emollama.errors import UserError
from emollama.logs.logger import get_logger
from emollama.suggestions import did_you_mean


@dataclass(frozen=True)
class PredictionBlock:
    """A block under ``evaluation_datasets`` or ``datasets``.

    Attributes:
        key: dotted name of the block.
        dataset_class: class of the block's dataset.
        block: Config objects of the block. A block under ``datasets`` has the default decoding and scoring.
        task: the task to ask.
    """

    key: str
    dataset_class: type[ClipDataset]
    block: EvaluationBlock
    task: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the block."""
        return self.block.dataset.pool().tasks

    @property
    def slots(self) -> Collection[str]:
        """The slots that the block has features for, and "frame" if the model encodes frames of its videos."""
        return self.dataset_class.clip_slots(self.block.dataset)

    @property
    def frame_selection(self) -> FrameSelection | None:
        """Which frame of a video the model encodes itself; None if it encodes none."""
        return getattr(self.block.dataset, "frame_selection", "first") if PIXELS in self.slots else None

    def has_sentences(self) -> bool:
        """Whether the prompts of the block contain spoken sentences; False with a warning if that cannot be read."""
        try:
            return self.dataset_class.has_sentences(self.block.dataset, block_path=self.key)
        except UserError as error:
            text = "%s: the annotation file cannot be read, so its samples are assumed to have no sentences: %s"
            get_logger().warning(text, self.key, error)
            return False

    def evaluation(self, config: RunConfig) -> RunConfig:
        """Return the configuration with this block as its only evaluation block, and with default scoring."""
        label = self.key.partition(".")[2]
        block = dataclasses.replace(self.block, scoring=config.task_class.scoring.Config())
        names = {**config.names, f"evaluation_datasets.{label}": config.names[self.key]}
        return dataclasses.replace(config, evaluation_datasets={label: block}, names=names)


def prediction_blocks(config: RunConfig) -> list[PredictionBlock]:
    """Return the blocks whose dataset class can be used for other clips, ``evaluation_datasets`` before ``datasets``.

    The task of each is its first one.
    """
    blocks = {f"evaluation_datasets.{label}": block for label, block in config.evaluation_datasets.items()}
    for label, cfg in config.datasets.items():
        blocks[f"datasets.{label}"] = config.default_block(cfg)
    usable = []
    for key, block in blocks.items():
        dataset_class = config.dataset_class(key)
        if issubclass(dataset_class, ClipDataset):
            usable.append(PredictionBlock(key, dataset_class, block, block.dataset.pool().tasks[0]))
    return usable


def find_prediction_block(config: RunConfig, task: str | None) -> PredictionBlock:
    """Return the first block that has the task, ``evaluation_datasets`` before ``datasets``, or else the first block.

    Args:
        config: the resolved configuration.
        task: the task; None selects the first task of the first block.

    Raises:
        UserError: If the task is unknown, or no block's dataset class can be used for other video clips.
    """
    usable = prediction_blocks(config)
    valid = list(dict.fromkeys([*TASK_NAMES, *(name for block in usable for name in block.tasks)]))
    if task is not None and task not in valid:
        raise UserError(f"--task: unknown task '{task}'.{did_you_mean(task, valid)} Tasks: {', '.join(valid)}")
    if not usable:
        text = "no block under evaluation_datasets or datasets has video clips or images, whose labels and instructions it needs"
        raise UserError(f"{text}. Add the block that the checkpoint was trained with.")
    suitable = [block for block in usable if task in block.tasks]
    if task is not None and not suitable:
        get_logger().warning("no block of this configuration has the task '%s', so the model may not be trained for it", task)
    block = (suitable or usable)[0]
    return block if task is None else dataclasses.replace(block, task=task)

"""The dataset block that predictions for other videos use: its labels, instructions, features, sentences and decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.config import EvaluationBlock, RunConfig
from emollama.data.annotations import Clip, Table
from emollama.data.instructions import TASK_NAMES
from emollama.datasets.feature_clips import FeatureClips
from emollama.errors import UserError
from emollama.logs.logger import get_logger
from emollama.media.source import Source
from emollama.suggestions import did_you_mean

# Keys that select clips or decide what happens to missing features, set so that no video is left out.
WHOLE_LIST = {"exclude": [], "exclude_labels": [], "held_out": 0.0, "curriculum": {}, "missing_features": "zero"}


@dataclass(frozen=True)
class Template:
    """A block under ``evaluation_datasets`` or ``datasets``.

    Attributes:
        key: dotted name of the block.
        dataset_class: class of the block's dataset.
        block: Config objects of the block. A block under ``datasets`` has the default decoding and scoring.
        task: the task to ask.
    """

    key: str
    dataset_class: Any
    block: EvaluationBlock
    task: str

    @property
    def cfg(self) -> Any:
        """The Config object of the dataset."""
        return self.block.dataset

    @property
    def reads_frames(self) -> bool:
        """Whether the model itself computes image features from frames."""
        return bool(self.cfg.reads_frames)

    @property
    def slots(self) -> set[str]:
        """The slots for which the block has features."""
        return {slot for slot, path in self.cfg.features.items() if path is not None}

    def has_sentences(self, config: RunConfig) -> bool:
        """Whether the block's samples have sentences, from a transcript file or from the annotation file, which is then read."""
        if self.cfg.transcription_path is not None:
            return True
        cfg = dataclasses.replace(self.cfg, features=dict.fromkeys(self.cfg.features), image_path=None, **WHOLE_LIST)
        shapes = config.model_class.slot_shapes(config.model)
        try:
            dataset = self.dataset_class(cfg, slot_shapes=shapes, block_path=self.key, training=False)
            return dataset.table.sentences is not None
        except UserError as error:
            text = "%s: the annotation file cannot be read, so its samples are assumed to have no sentences: %s"
            get_logger().warning(text, self.key, error)
            return False

    def for_videos(
        self, config: RunConfig, sources: Mapping[str, Source], sentence: str | None, folders: Mapping[str, Path], videos: Path
    ) -> RunConfig:
        """Return a configuration whose only evaluation block is this block with other video clips.

        Args:
            config: the configuration that contains the block.
            sources: name -> video clip.
            sentence: the spoken sentence of every clip; None for prompts without a sentence.
            folders: slot -> folder of its arrays, for each slot in :attr:`slots`.
            videos: folder of the videos, from which frames are read.
        """
        sentences = None if sentence is None else dict.fromkeys(sources, sentence)
        table = Table([Clip(name, "", number) for number, name in enumerate(sources, 1)], sentences)
        dataset_class = type(self.dataset_class.__name__, (self.dataset_class,), {"read_table": lambda dataset: table})
        features = {slot: str(folders[slot]) if slot in folders else None for slot in self.cfg.features}
        image_path = str(videos) if self.reads_frames else None
        changes = {"task_pool": self.task, "transcription_path": None, "image_path": image_path, **WHOLE_LIST}
        cfg = dataclasses.replace(self.cfg, features=features, **changes)
        label = self.key.partition(".")[2]
        block = EvaluationBlock(cfg, self.block.task, config.task_class.scoring.Config())
        replaced = {f"evaluation_datasets.{label}": dataset_class}
        return dataclasses.replace(config, evaluation_datasets={label: block}, replaced_datasets=replaced)


def find_template(config: RunConfig, task: str | None) -> Template:
    """Return the first block that has the task, ``evaluation_datasets`` before ``datasets``, or else the first block.

    Args:
        config: the resolved configuration.
        task: the task; None selects the first task of the first block.

    Raises:
        UserError: If the task is unknown, or no block has clips with features.
    """
    if task is not None and task not in TASK_NAMES:
        raise UserError(f"--task: unknown task '{task}'.{did_you_mean(task, TASK_NAMES)} Tasks: {', '.join(TASK_NAMES)}")
    blocks = {f"evaluation_datasets.{label}": block for label, block in config.evaluation_datasets.items()}
    for label, cfg in config.datasets.items():
        blocks[f"datasets.{label}"] = config.default_block(cfg)
    usable = {key: block for key, block in blocks.items() if issubclass(config.dataset_class(key), FeatureClips)}
    if not usable:
        text = "no block under evaluation_datasets or datasets has video clips, whose labels and instructions predict needs"
        raise UserError(f"{text}. Add the block that the checkpoint was trained with. To caption images, use emollama eval.")
    suitable = [key for key, block in usable.items() if task in block.dataset.pool().tasks]
    if task is not None and not suitable:
        get_logger().warning("no block of this configuration has the task '%s', so the model may not be trained for it", task)
    key = (suitable or list(usable))[0]
    return Template(key, config.dataset_class(key), usable[key], task or usable[key].dataset.pool().tasks[0])

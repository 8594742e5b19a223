"""The block of a configuration that other clips are asked by: its labels, wordings, features, sentences, ways to answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.config import EvaluationBlock, RunConfig
from emollama.data.annotations import Clip, Table
from emollama.data.instructions import TASK_NAMES
from emollama.datasets.feature_clips import FOLDERS, FeatureClips
from emollama.errors import UserError
from emollama.logs.logger import get_logger
from emollama.media.source import Source
from emollama.registry import did_you_mean

WITHOUT_FEATURES = {**dict.fromkeys(FOLDERS), "image_path": None}
WHOLE_LIST = {"exclude": [], "exclude_labels": [], "held_out": 0.0, "curriculum": {}, "missing_features": "zero"}


@dataclass(frozen=True)
class Template:
    """A block under ``evaluation_datasets`` or ``datasets``.

    Attributes:
        key: its dotted name.
        made: its dataset's class.
        block: its keys; those of a block under ``datasets`` answer by the defaults.
        task: what is asked.
    """

    key: str
    made: Any
    block: EvaluationBlock
    task: str

    @property
    def cfg(self) -> Any:
        """The dataset's Config."""
        return self.block.dataset

    @property
    def reads_frames(self) -> bool:
        """Whether the model makes image rows of frames itself."""
        return self.cfg.image_feature_path is None and self.cfg.image_path is not None

    @property
    def slots(self) -> set[str]:
        """The first slot of each folder of features that the block has."""
        return {slots[0] for key, slots in FOLDERS.items() if getattr(self.cfg, key) is not None}

    def has_sentences(self, config: RunConfig) -> bool:
        """Whether the block's clips have sentences: of a transcript, or in the list itself, which is read for it."""
        if self.cfg.transcription_path is not None:
            return True
        cfg = dataclasses.replace(self.cfg, **WITHOUT_FEATURES, **WHOLE_LIST)
        shapes = config.classes["model"].slot_shapes(config.model)
        try:
            return self.made(cfg, slot_shapes=shapes, label=self.key, training=False).table.sentences is not None
        except UserError as error:
            get_logger().warning("%s: cannot be read, its clips are taken to have no sentences: %s", self.key, error)
            return False

    def asking(
        self, config: RunConfig, sources: Mapping[str, Source], sentence: str | None, folders: Mapping[str, Path], videos: Path
    ) -> RunConfig:
        """A configuration whose one evaluation block is this one over other clips.

        Args:
            config: the block's.
            sources: the clips.
            sentence: what is said in each of them; None for prompts without a sentence.
            folders: first slot -> folder of its arrays, for every slot of :attr:`slots`.
            videos: folder of the clips' videos, for frames.
        """
        sentences = None if sentence is None else dict.fromkeys(sources, sentence)
        table = Table([Clip(name, "", number) for number, name in enumerate(sources, 1)], sentences)
        made = type(self.made.__name__, (self.made,), {"read_table": lambda dataset: table})
        paths = {key: str(folders[slots[0]]) for key, slots in FOLDERS.items() if slots[0] in folders}
        image_path = str(videos) if self.reads_frames else None
        changes = {"task_pool": self.task, "transcription_path": None, "image_path": image_path, **paths, **WHOLE_LIST}
        cfg = dataclasses.replace(self.cfg, **changes)
        label = self.key.partition(".")[2]
        block = EvaluationBlock(cfg, self.block.task, config.classes["run.task"].scoring.Config())
        classes = {**config.classes, f"evaluation_datasets.{label}": made}
        return dataclasses.replace(config, evaluation_datasets={label: block}, classes=classes)


def find_template(config: RunConfig, task: str | None) -> Template:
    """The first block, those of ``evaluation_datasets`` before ``datasets``, that asks the task; else the first of all.

    Args:
        config: the resolved configuration.
        task: None asks the first task of the first block.

    Raises:
        UserError: an unknown task, or no block of clips with features.
    """
    if task is not None and task not in TASK_NAMES:
        raise UserError(f"--task: unknown task '{task}'.{did_you_mean(task, TASK_NAMES)} Known: {', '.join(TASK_NAMES)}")
    kind = config.classes["run.task"]
    blocks = {f"evaluation_datasets.{label}": block for label, block in config.evaluation_datasets.items()}
    for label, cfg in config.datasets.items():
        blocks[f"datasets.{label}"] = EvaluationBlock(cfg, kind.Config(), kind.scoring.Config())
    usable = {key: block for key, block in blocks.items() if issubclass(config.classes[key], FeatureClips)}
    if not usable:
        text = "no block under evaluation_datasets or datasets that labels and wordings of clips could be taken from"
        raise UserError(f"{text}. Add one, as the checkpoint was trained with (images are captioned by emollama eval).")
    asking = [key for key, block in usable.items() if task in block.dataset.pool().tasks]
    if task is not None and not asking:
        get_logger().warning("no block of this configuration asks the task '%s': the model may not have learnt it", task)
    key = (asking or list(usable))[0]
    return Template(key, config.classes[key], usable[key], task or usable[key].dataset.pool().tasks[0])

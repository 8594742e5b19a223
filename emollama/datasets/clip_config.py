"""The keys that all datasets of clips share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Union

from emollama.config import MISSING
from emollama.data.annotations import LABELS
from emollama.data.augmentation import Augmentation, AugmentationKind
from emollama.data.curriculum import Curriculum
from emollama.data.instructions import TaskPool, check_labels, user_text
from emollama.errors import require_at_least
from emollama.listing import abbreviated
from emollama.media.frame_selection import FrameChoice


@dataclass
class ClipConfig:
    """Keys that all datasets of clips share. Relative paths start at the current directory, or at ``data_root``."""

    annotation_file: str = MISSING
    """The list of clips."""
    data_root: str | None = None
    """Where annotation_file and image_path start. Null: the current directory."""
    image_path: str | None = None
    """Folder of the videos, <name>.mp4 or .avi: read where image_feature_path is null."""
    frame_selection: FrameChoice = "first"
    """Which frame of a video is read: first (as published), middle, random (the same one each time), or peak."""
    peak_index_path: str | None = None
    """Which frame is the most expressive, for peak: captions with peak_index (.json), or a CSV name,peak_index; starts at the
    annotation file's folder."""
    task_pool: Union[str, list[str], dict[str, Any]] = "emotion"  # noqa: UP007
    """Tasks to draw from: one, a list (a repeated name weighs more) or a mapping name -> weight."""
    instructions: dict[str, list[str]] = field(default_factory=dict)
    """task -> instructions, in place of the built-in ones. {labels} in an instruction becomes the prompt labels."""
    labels: list[str] = field(default_factory=lambda: list(LABELS))
    """Labels that clips may have."""
    prompt_labels: list[str] | None = None
    """Labels shown in the prompt, in this order. Null: the same as labels."""
    label_map: dict[str, str] = field(default_factory=dict)
    """Label in the file -> label here. Labels that it does not name stay as they are."""
    exclude_labels: list[str] = field(default_factory=list)
    """Clips with these labels, which need not be among labels, are left out."""
    exclude: list[str] = field(default_factory=list)
    """Names of clips that are left out, such as those whose caption is a refusal."""
    held_out: float = 0.0
    """Share of the clips, chosen by their names: under datasets they are not trained on, under evaluation_datasets they alone
    are answered. Lists that share clips hold out the same ones."""
    transcription_path: str | None = None
    """CSV of the spoken sentences (name,sentence); starts at the annotation file's folder. Null: the sentences in the list
    itself, if it has any; else prompts without a sentence."""
    image_feature_path: str | None = "eva"
    """EVA caches, (1 + P, width) each, row 0 the class token: a folder of .npy files or of packed shards, or tar shards
    (a folder, or name-{000..011}.tar). Null: frames of image_path go through the model's own encoder (model.vit_weights) in each
    step; or, without image_path, there are no image and class rows."""
    face_feature_path: str | None = "mae_340_UTT"
    """MAE features, as image_feature_path. Null: no face row."""
    video_feature_path: str | None = "maeV_399_UTT"
    """VideoMAE features, as image_feature_path. Null: no video row."""
    audio_feature_path: str | None = "HL-UTT"
    """HuBERT features, as image_feature_path. Null: no audio row."""
    missing_features: Literal["error", "zero", "skip"] = "error"
    """What to do about a clip without a file: stop, use zero rows, or leave the clip out."""
    check_values: Literal["small", "all"] = "small"
    """Whose values are checked for NaN and inf before the start: arrays up to 1 MiB (larger ones when read), or all."""
    text_processor: Literal["blip_caption", "verbatim"] = "blip_caption"
    """What happens to answers before they are tokenized."""
    max_words: int = 200
    """Words of an answer that blip_caption keeps."""
    shuffle: bool = True
    """False draws the clips in file order, wrapping at the end."""
    shuffle_window: int = 4
    """Tar shards whose clips are shuffled together; shards themselves come in random order. Other stores shuffle freely."""
    batch_size: int = 1
    """Samples of a micro-batch on one process."""
    sample_ratio: float = 1.0
    """Share of this block among several datasets blocks, any positive scale."""
    enable_augmentation: bool = False
    """Change features at random in training, as augmentations says; evaluation never does."""
    augmentation_prob: float = 0.5
    """Probability of each augmentation for each clip drawn."""
    augmentations: list[AugmentationKind] = field(default_factory=lambda: ["noise", "drop_modality", "mask_rows"])
    """noise: Gaussian noise on face, video and audio rows. drop_modality: one modality's rows become zeros. mask_rows: some
    image rows become zeros."""
    augmentation_noise: float = 0.1
    """Standard deviation of the noise, as a share of each array's own."""
    augmentation_mask: float = 0.25
    """Share of the image rows that mask_rows sets to zero."""
    curriculum: dict[str, Any] = field(default_factory=dict)
    """{by: modalities | answer_length | a column of the list, epochs: n, descending: False}: in epoch e of n only the
    (e + 1) / n easiest clips are drawn; small values are easy. Empty: all clips from the start."""

    def __post_init__(self) -> None:
        check_labels(self.labels, "labels")
        check_labels(self.prompt_labels or [], "prompt_labels")
        require_at_least(1, self, "batch_size", "max_words", "shuffle_window")
        if not 0 < self.sample_ratio < float("inf"):
            raise ValueError(f"sample_ratio is {self.sample_ratio}; it must be above 0, and finite")
        for label in self.label_map.values():
            if label not in self.labels and label not in self.exclude_labels:
                raise ValueError(f"label_map: '{label}' is not among labels ({abbreviated(self.labels)}), nor in exclude_labels")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it is a share of the clips, at least 0 and below 1")
        self.pool()
        self.augmentation()
        self.curriculum_schedule()

    def pool(self) -> TaskPool:
        """The tasks with their weights and instructions."""
        return TaskPool(self.task_pool, self.instructions, self.prompt_labels or self.labels)

    def turns(self) -> list[str]:
        """What users may say about a clip without speech."""
        pool = self.pool()
        return [user_text(task, instruction, "") for task in pool.tasks for instruction in pool.instructions[task]]

    def augmentation(self) -> Augmentation | None:
        """What happens to features in training."""
        made = Augmentation(self.augmentation_prob, tuple(self.augmentations), self.augmentation_noise, self.augmentation_mask)
        return made if self.enable_augmentation else None

    def curriculum_schedule(self) -> Curriculum | None:
        """Which clips come first."""
        return Curriculum.of(self.curriculum)

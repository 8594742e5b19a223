"""The configuration keys that all datasets of video clips share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, Union

from emollama.config import MISSING
from emollama.config.aliases import PATH_SUFFIX
from emollama.data.augmentation import Augmentation, AugmentationKind
from emollama.data.curriculum import Curriculum
from emollama.data.instructions import TaskPool, check_labels, user_text
from emollama.data.label_map import DATASET_LABELS, LABELS, LabelMap, LabelSource, require_unambiguous
from emollama.data.slots import FrameSelection
from emollama.datasets.feature_config import FeatureConfig, parse_features
from emollama.errors import require_at_least
from emollama.field_texts import documented
from emollama.listing import abbreviated

FEATURES: dict[str, str | None] = {
    "image": "eva",
    "face": "mae_340_UTT",
    "video": "maeV_399_UTT",
    "audio": "HL-UTT",
}  # folders of MER2023


@documented
@dataclass
class ClipConfig:
    """Keys that all datasets of video clips share.

    Relative paths are relative to ``data_root``, or to the current directory if it is null.
    """

    annotation_file: str = MISSING
    """The annotation file: the list of clips."""
    data_root: str | None = None
    """Base folder for relative annotation_file and image_path. If null, they are relative to the current directory."""
    image_path: str | None = None
    """Folder of the videos, <name>.mp4, .avi, .mkv and so on. They are read only if features.image is null."""
    frame_selection: FrameSelection = "first"
    """The frame of a video that is read: first (as published), middle, random (the same frame each time), or peak."""
    peak_index_path: str | None = None
    """File with the index of the most expressive frame of each clip, for peak: captions with peak_index (.json), or a CSV
    name,peak_index. Relative to the folder of the annotation file."""
    task_pool: Union[str, list[str], dict[str, Any]] = "emotion"  # noqa: UP007
    """Tasks that training draws from: one name, a list (each repetition adds to the weight) or a mapping name -> weight."""
    instructions: dict[str, list[str]] = field(default_factory=dict)
    """task -> instructions that replace the built-in ones. {labels} in an instruction becomes the prompt labels."""
    labels: list[str] = field(default_factory=lambda: list(LABELS))
    """Accepted labels of samples."""
    prompt_labels: list[str] | None = None
    """Labels in the prompt, in this order. If null, those in labels are used."""
    label_source: LabelSource | None = None
    """Dataset whose labels or codes the annotation file contains. They are replaced by the labels that they stand for, such as
    joy (MELD) or 03 (RAVDESS) by happy. label_map applies to the result."""
    label_map: dict[str, str] = field(default_factory=dict)
    """Label in the annotation file -> label in training and evaluation. Case is ignored, and other forms of the accepted labels,
    such as happiness, need no entry. Other labels are unchanged."""
    exclude_labels: list[str] = field(default_factory=list)
    """Clips with these labels are left out. The labels need not be in labels."""
    exclude: list[str] = field(default_factory=list)
    """Names of clips to leave out, such as those whose caption is a refusal."""
    held_out: float = 0.0
    """Fraction of the samples that is held out: a block under datasets does not train on them, and a block under
    evaluation_datasets evaluates only them. The choice depends only on a hash of the name, so a sample that is listed in several
    annotation files is held out in all of them."""
    transcription_path: str | None = None
    """CSV of the spoken sentences (name,sentence). Relative to the folder of the annotation file. If null, the sentences of the
    annotation file are used; if it has none, prompts contain no sentence."""
    features: dict[str, Any] = field(default_factory=lambda: dict(FEATURES))
    """slot -> features of the clips: a folder of .npy files or of packed shards, or tar shards (a folder, or
    name-{000..011}.tar). Slots that you add, such as {gaze: gaze_npy}, must be in model.slots. null: these clips have no such
    features. If image is null, the model encodes frames of the videos in image_path in each step (model.vit_weights); without
    image_path, clips have no image and class features. An array of image, (1 + P, D), contains the class token and P patches.
    {path: HL-frames, pooling: mean} instead of a path reads arrays of any number of vectors, (T, D), and uses their mean.
    image_feature_path, face_feature_path and so on are other names of features.image, features.face and so on."""
    stream: bool = False
    """Whether tars at URLs are read in parts during training, shortly before they are needed, instead of being downloaded at the
    start (docs/data.md, Streaming). Has no effect on local files."""
    missing_features: Literal["error", "zero", "skip"] = "error"
    """What to do with a clip without a feature array: stop, use zeros, or leave the clip out. zero also fills slots of the model
    that features does not mention."""
    check_values: Literal["small", "all"] = "small"
    """Which arrays are checked for NaN and inf at the start: those up to 1 MiB (larger ones when they are used), or all."""
    text_processor: Literal["blip_caption", "verbatim"] = "blip_caption"
    """How target texts are changed before tokenization. blip_caption: lower case, most punctuation removed, cut to max_words.
    verbatim: unchanged."""
    max_words: int = 200
    """Maximum number of words of a target text, to which blip_caption cuts it."""
    shuffle: bool = True
    """Whether samples are shuffled. If False, they are read in file order, again and again."""
    shuffle_window: int = 4
    """Number of tar shards whose clips are shuffled together; the shards come in random order. Clips in other stores are shuffled
    all together."""
    batch_size: int = 1
    """Samples per micro-batch in one process."""
    sample_ratio: float = 1.0
    """Relative share of this block in a mixture of several datasets, on any positive scale."""
    enable_augmentation: bool = False
    """Whether training changes features at random (augmentations). Evaluation never does."""
    augmentation_prob: float = 0.5
    """Probability of each augmentation for each sample."""
    augmentations: list[AugmentationKind] = field(default_factory=lambda: ["noise", "drop_modality", "mask_rows"])
    """noise: add Gaussian noise to all features but those of image. drop_modality: replace the features of one slot by zeros.
    mask_rows: replace some feature vectors of each slot that has several, such as image, by zeros."""
    augmentation_noise: float = 0.1
    """Standard deviation of the noise, as a fraction of the standard deviation of each array."""
    augmentation_mask: float = 0.25
    """Fraction of a slot's feature vectors that mask_rows replaces by zeros."""
    curriculum: dict[str, Any] = field(default_factory=dict)
    """{by: modalities | answer_length | a column of the annotation file, epochs: n, descending: False}: epoch e of n uses only
    the easiest (e + 1) / n of the clips, those with the smallest values. If empty, all clips are used from the start."""

    def __post_init__(self) -> None:
        # A subclass may declare a key for one slot, such as gaze_feature_path, with a default of its own.
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name.endswith(PATH_SUFFIX)}
        self.features = self.features | {key.removesuffix(PATH_SUFFIX): path for key, path in own.items()}
        self.feature_configs()
        check_labels(self.labels, "labels")
        check_labels(self.prompt_labels or [], "prompt_labels")
        require_at_least(1, self, "batch_size", "max_words", "shuffle_window")
        if not 0 < self.sample_ratio < float("inf"):
            raise ValueError(f"sample_ratio is {self.sample_ratio}; it must be above 0, and finite")
        self._check_label_map()
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it must be a fraction of the clips, at least 0 and below 1")
        self.pool()
        self.augmentation()
        self.curriculum_schedule()

    def _check_label_map(self) -> None:
        label_map = self.accepted_labels()
        require_unambiguous(self.label_map, "label_map")
        for label in self.label_map.values():
            if label_map.label_or_synonym(label) is None:
                raise ValueError(f"label_map: '{label}' is neither in labels ({abbreviated(self.labels)}) nor in exclude_labels")

    def accepted_labels(self) -> LabelMap:
        """Return the map from labels of the annotation file to ``labels`` and ``exclude_labels``."""
        excluded = [label for label in self.exclude_labels if label not in self.labels]
        source = [DATASET_LABELS[self.label_source]] if self.label_source else []
        return LabelMap([*self.labels, *excluded], [*source, self.label_map])

    def pool(self) -> TaskPool:
        """Create the pool of tasks with their weights and instructions."""
        return TaskPool(self.task_pool, self.instructions, self.prompt_labels or self.labels)

    def turns(self) -> list[str]:
        """Return all user texts for a clip without speech."""
        pool = self.pool()
        return [user_text(task, instruction, "") for task in pool.tasks for instruction in pool.instructions[task]]

    def feature_configs(self) -> dict[str, FeatureConfig | None]:
        """Return slot -> its features, None for no such features."""
        return parse_features(self.features)

    @property
    def reads_frames(self) -> bool:
        """Whether the model encodes frames of the videos, because there are no image features."""
        return self.features.get("image") is None and self.image_path is not None

    def with_features(self, features: Mapping[str, str], **changes: Any) -> Self:
        """Return a copy with the features of these slots only, and with other values of further keys.

        Args:
            features: slot -> path, with the pooling of this block. Other slots have no features.
            changes: key -> value.
        """
        configured = self.feature_configs()
        entries: dict[str, Any] = dict.fromkeys(configured)
        for slot, path in features.items():
            own_config = configured.get(slot)
            entries[slot] = FeatureConfig(path, own_config.pooling if own_config else None).plain()
        keys = [item.name for item in fields(self) if item.name.endswith(PATH_SUFFIX)]
        own: dict[str, Any] = {key: entries[key.removesuffix(PATH_SUFFIX)] for key in keys}
        return dataclasses.replace(self, features=entries, **own, **changes)

    def augmentation(self, modalities: Sequence[tuple[str, ...]] = ()) -> Augmentation | None:
        """Create the augmentation; None if it is disabled. Invalid values are rejected even then.

        Args:
            modalities: the slots of each modality, in the order of the model.
        """
        augmentation = Augmentation(
            prob=self.augmentation_prob,
            kinds=tuple(self.augmentations),
            noise=self.augmentation_noise,
            mask=self.augmentation_mask,
            modalities=tuple(modalities),
        )
        return augmentation if self.enable_augmentation else None

    def curriculum_schedule(self) -> Curriculum | None:
        """Create the curriculum; None if there is none."""
        return Curriculum.from_config(self.curriculum)

"""Keys of the registered datasets' blocks; see :mod:`emollama.datasets.clip_config` for those that most of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Union

from emollama.config import MISSING
from emollama.data.annotations import DFEW_LABELS, LABELS, AnnotationFormat
from emollama.data.instructions import TaskPool
from emollama.data.prompts.image_placeholder import checked
from emollama.datasets.clip_config import ClipConfig
from emollama.errors import require_at_least

CAPTION_TASK = "caption"
CAPTION_INSTRUCTIONS = {CAPTION_TASK: [""]}  # the empty text stands for the model's own prompts


@dataclass
class FeatureFaceCaptionConfig(ClipConfig):
    """Keys of a ``feature_face_caption`` block."""

    annotation_format: AnnotationFormat = "auto"
    """n (names alone, to be answered), ne, ncev, or auto (told by the number of fields)."""
    coarse_grained_json_path: str | None = "MERR_coarse_grained.json"
    """Captions of the task reason; starts at the annotation file's folder."""
    fine_grained_json_path: str | None = "MERR_fine_grained.json"
    """Captions of the task reason_v2; starts at the annotation file's folder."""
    transcription_path: str | None = "transcription_en_all.csv"
    """CSV of the spoken sentences (name,sentence); starts at the annotation file's folder. Null: prompts without a sentence."""


@dataclass
class MER2024CaptionConfig(FeatureFaceCaptionConfig):
    """Keys of a ``mer2024_caption`` block."""

    labels: list[str] = field(default_factory=lambda: ["neutral", "angry", "happy", "sad", "worried", "surprise"])
    """Labels that clips may have."""
    prompt_labels: list[str] | None = field(default_factory=lambda: list(LABELS))
    """Labels shown in the prompt, in this order. Null: the same as labels."""
    transcription_path: str | None = "transcription_all_new.csv"
    """CSV of the spoken sentences: name and sentence, sentence_en or english. Null: prompts without a sentence."""
    face_feature_path: str | None = "mae_340_23_UTT"
    """MAE features, as image_feature_path. Null: no face row."""
    video_feature_path: str | None = "maeVideo_399_23_UTT"
    """VideoMAE features, as image_feature_path. Null: no video row."""
    audio_feature_path: str | None = "HL_23_UTT"
    """HuBERT features, as image_feature_path. Null: no audio row."""


@dataclass
class DFEWConfig(ClipConfig):
    """Keys of a ``dfew`` block; ``--options datasets.dfew.fold=2`` chooses the fold. All paths start at ``data_root``."""

    fold: int = 1
    """Which of the five folds."""
    split: Literal["auto", "train", "test"] = "auto"
    """auto: train under datasets, test under evaluation_datasets."""
    annotation_file: str = "{split}(single-labeled)/set_{fold}.csv"
    """The fold's table, video_name,label; {split} and {fold} are filled in."""
    zero_pad: int = 5
    """Digits that clip names are filled up to with zeros (1 -> 00001), as feature files are called. 0: as written."""
    labels: list[str] = field(default_factory=lambda: list(DFEW_LABELS.values()))
    """Labels that clips may have."""
    label_map: dict[str, str] = field(default_factory=lambda: dict(DFEW_LABELS))
    """Label in the file -> label here. Labels that it does not name stay as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.fold <= 5:
            raise ValueError(f"fold is {self.fold}; DFEW has the folds 1 to 5")


@dataclass
class EMERConfig(ClipConfig):
    """Keys of an ``emer`` block."""

    annotation_file: str = "EMER_NCE.txt"
    """The V1 or V2 table (.csv), or a list (.txt)."""
    task_pool: Union[str, list[str], dict[str, Any]] = "reason_v2"  # noqa: UP007
    """Tasks to draw from: one, a list (a repeated name weighs more) or a mapping name -> weight."""
    captions_path: str | None = "MERR_fine_grained.json"
    """Descriptions for a list, as an object keyed by name with smp_reason_caption; starts at the annotation file's folder.
    Evaluation does without where the default is not there, or null."""


@dataclass
class CustomConfig(ClipConfig):
    """Keys of a ``custom`` block."""

    columns: dict[str, str] = field(default_factory=dict)
    """emotion, sentence or reason -> how that column is called in your table. Other columns serve the curriculum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in self.columns:
            if key not in ("emotion", "sentence", "reason"):
                raise ValueError(f"columns: unknown key '{key}'. Known: emotion, sentence, reason")


@dataclass
class Flickr30kCaptionConfig:
    """Keys of a ``flickr30k_caption`` block. Relative paths start at the current directory, or at ``data_root``."""

    annotation_file: str = MISSING
    """Captions as JSON: MiniGPT-4's form (what emollama prepare flickr30k writes), or COCO's."""
    data_root: str | None = None
    """Where annotation_file and image_path start. Null: the current directory."""
    image_path: str = MISSING
    """Folder of the images: <image_id>.jpg, .jpeg or .png, or as COCO's form names them."""
    captions: Literal["joined", "random", "first"] = "joined"
    """What is learnt of an image's captions, and what loss is of: all in one text, one at random (evaluation takes the
    first), or the first. An answer is compared with each of them."""
    instructions: dict[str, list[str]] = field(default_factory=dict)
    """caption -> instructions that ask for one, <ImageHere> where the image goes. Empty: the model's own prompts."""
    missing_images: Literal["error", "skip"] = "error"
    """What to do about an image that is missing or cannot be read: stop, or leave it out."""
    exclude: list[str] = field(default_factory=list)
    """Names of images that are left out: <image_id>, or the file's name without its ending."""
    held_out: float = 0.0
    """Share of the images, chosen by their names: under datasets they are not trained on, under evaluation_datasets they
    alone are answered."""
    text_processor: Literal["blip_caption", "verbatim"] = "verbatim"
    """What happens to captions before they are tokenized."""
    max_words: int = 200
    """Words of a caption that blip_caption keeps."""
    shuffle: bool = True
    """False draws the images in file order, wrapping at the end."""
    batch_size: int = 1
    """Samples of a micro-batch on one process."""
    sample_ratio: float = 1.0
    """Share of this block among several datasets blocks, any positive scale."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "max_words")
        for instruction in self.turns():
            try:
                checked(instruction)
            except ValueError as error:
                raise ValueError(f"instructions: {error}") from None
        if not 0 < self.sample_ratio < float("inf"):
            raise ValueError(f"sample_ratio is {self.sample_ratio}; it must be above 0, and finite")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it is a share of the images, at least 0 and below 1")

    @property
    def labels(self) -> list[str]:
        """None: captions are no labels."""
        return []

    def pool(self) -> TaskPool:
        """The task with its instructions."""
        return TaskPool(CAPTION_TASK, self.instructions, (), CAPTION_INSTRUCTIONS)

    def turns(self) -> list[str]:
        """What users may say."""
        return self.pool().instructions[CAPTION_TASK]

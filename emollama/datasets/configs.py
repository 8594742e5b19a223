"""The configuration keys of each registered dataset; most of them share :mod:`emollama.datasets.clip_config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Union

from emollama.config import MISSING
from emollama.data.annotations import DFEW_DIGITS, AnnotationFormat
from emollama.data.instructions import TaskPool
from emollama.data.label_map import DATASET_LABELS, LABELS
from emollama.data.prompts.image_tag import check_instruction
from emollama.datasets.clip_config import FEATURES, ClipConfig
from emollama.errors import require_at_least
from emollama.field_texts import documented

CAPTION_TASK = "caption"
# An empty instruction makes the model use its own prompts.
CAPTION_INSTRUCTIONS = {CAPTION_TASK: [""]}


@documented
@dataclass
class FeatureFaceCaptionConfig(ClipConfig):
    """Keys of a ``feature_face_caption`` block."""

    annotation_format: AnnotationFormat = "auto"
    """Format of the list: n (names without labels), ne (name label), ncev (name count label [valence]), or auto (depending on
    the number of fields in the first line)."""
    coarse_grained_json_path: str | None = "MERR_coarse_grained.json"
    """Captions of the task reason. Relative to the folder of the annotation file."""
    fine_grained_json_path: str | None = "MERR_fine_grained.json"
    """Captions of the task reason_v2. Relative to the folder of the annotation file."""
    transcription_path: str | None = "transcription_en_all.csv"
    """CSV of spoken sentences (name,sentence). Relative to the folder of the annotation file. If null, prompts contain no
    sentence."""


@documented
@dataclass
class MER2024CaptionConfig(FeatureFaceCaptionConfig):
    """Keys of a ``mer2024_caption`` block."""

    labels: list[str] = field(default_factory=lambda: ["neutral", "angry", "happy", "sad", "worried", "surprise"])
    """Accepted labels of samples."""
    prompt_labels: list[str] | None = field(default_factory=lambda: list(LABELS))
    """Labels in the prompt, in this order. If null, those in labels are used."""
    transcription_path: str | None = "transcription_all_new.csv"
    """CSV of the spoken sentences with the columns name and sentence, sentence_en or english. If null, prompts contain no
    sentence."""
    features: dict[str, Any] = field(
        default_factory=lambda: FEATURES | {"face": "mae_340_23_UTT", "video": "maeVideo_399_23_UTT", "audio": "HL_23_UTT"}
    )
    """slot -> features of the clips, as in feature_face_caption."""


@documented
@dataclass
class DFEWConfig(ClipConfig):
    """Keys of a ``dfew`` block. ``--options datasets.dfew.fold=2`` selects the fold. All paths are relative to ``data_root``."""

    fold: int = 1
    """Number of the fold, 1 to 5."""
    split: Literal["auto", "train", "test"] = "auto"
    """Part of the fold. auto: train under datasets, test under evaluation_datasets."""
    annotation_file: str = "{split}(single-labeled)/set_{fold}.csv"
    """The table of the fold, video_name,label. {split} and {fold} are replaced by their values."""
    zero_pad: int = DFEW_DIGITS
    """Number of digits to which clip names are padded with zeros (1 -> 00001), as in names of feature files. With 0, names are
    not padded."""
    labels: list[str] = field(default_factory=lambda: list(DATASET_LABELS["dfew"].values()))
    """Accepted labels of samples."""
    label_map: dict[str, str] = field(default_factory=lambda: dict(DATASET_LABELS["dfew"]))
    """Label in the annotation file -> label in training and evaluation. Case is ignored, and other forms of the accepted labels,
    such as happiness, need no entry. Other labels are unchanged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.fold <= 5:
            raise ValueError(f"fold is {self.fold}; it must be from 1 to 5")


@documented
@dataclass
class EMERConfig(ClipConfig):
    """Keys of an ``emer`` block."""

    annotation_file: str = "EMER_NCE.txt"
    """The published table, version 1 or 2 (.csv), or a list of clips (.txt)."""
    task_pool: Union[str, list[str], dict[str, Any]] = "reason_v2"  # noqa: UP007
    """Tasks that training draws from: one name, a list (each repetition adds to the weight) or a mapping name -> weight."""
    captions_path: str | None = "MERR_fine_grained.json"
    """Descriptions for a .txt list: a JSON object with clip names as keys and smp_reason_caption in each value. Relative to the
    folder of the annotation file. If null, or if there is no file with the default name, evaluation has no reference answers."""


@documented
@dataclass
class CustomConfig(ClipConfig):
    """Keys of a ``custom`` block."""

    columns: dict[str, str] = field(default_factory=dict)
    """emotion, sentence or reason -> name of this column in your table. A curriculum may use further columns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in self.columns:
            if key not in ("emotion", "sentence", "reason"):
                raise ValueError(f"columns: unknown key '{key}'. Known: emotion, sentence, reason")


@documented
@dataclass
class CaptionConfig:
    """Keys that the datasets of images with captions share."""

    instructions: dict[str, list[str]] = field(default_factory=dict)
    """caption -> instructions, with <ImageHere> at the position of the image. If empty, the model's own prompts are used."""
    missing_images: Literal["error", "skip"] = "error"
    """What to do with an image that is missing or unreadable, or an image in a tar without a caption: stop, or leave it out."""
    exclude: list[str] = field(default_factory=list)
    """Names of images to leave out: <image_id>, or the file name without its extension. In tars, the path of the tar without its
    extension, and the key of the sample: 00000/000000012."""
    held_out: float = 0.0
    """Fraction of the samples that is held out: a block under datasets does not train on them, and a block under
    evaluation_datasets evaluates only them. The choice depends only on a hash of the name, so a sample that is listed in several
    annotation files is held out in all of them."""
    text_processor: Literal["blip_caption", "verbatim"] = "verbatim"
    """How target texts are changed before tokenization. blip_caption: lower case, most punctuation removed, cut to max_words.
    verbatim: unchanged."""
    max_words: int = 200
    """Maximum number of words of a target text, to which blip_caption cuts it."""
    shuffle: bool = True
    """Whether samples are shuffled. If False, they are read in file order, again and again."""
    batch_size: int = 1
    """Samples per micro-batch in one process."""
    sample_ratio: float = 1.0
    """Relative share of this block in a mixture of several datasets, on any positive scale."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "max_words")
        for instruction in self.turns():
            try:
                check_instruction(instruction)
            except ValueError as error:
                raise ValueError(f"instructions: {error}") from None
        if not 0 < self.sample_ratio < float("inf"):
            raise ValueError(f"sample_ratio is {self.sample_ratio}; it must be above 0, and finite")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it must be a fraction of the images, at least 0 and below 1")

    @property
    def labels(self) -> list[str]:
        """Return an empty list, because captions are not labels."""
        return []

    def pool(self) -> TaskPool:
        """Create the pool of the single task with its instructions."""
        return TaskPool(CAPTION_TASK, self.instructions, (), CAPTION_INSTRUCTIONS)

    def turns(self) -> list[str]:
        """Return all user texts."""
        return self.pool().instructions[CAPTION_TASK]


@documented
@dataclass
class Flickr30kCaptionConfig(CaptionConfig):
    """Keys of a ``flickr30k_caption`` block.

    Relative paths are relative to ``data_root``, or to the current directory if it is null.
    """

    annotation_file: str = MISSING
    """Captions as JSON in the format of MiniGPT-4 (written by emollama prepare flickr30k) or COCO."""
    data_root: str | None = None
    """Base folder for relative annotation_file and image_path. If null, they are relative to the current directory."""
    image_path: str = MISSING
    """Folder of the images: <image_id>.jpg, .jpeg or .png, or the file names in a COCO file."""
    captions: Literal["joined", "random", "first"] = "joined"
    """Target text in training and of the metric loss: all captions of the image joined, a random one (evaluation uses the first),
    or the first. Generated captions are compared with each of the captions."""


@documented
@dataclass
class ImageTextTarsConfig(CaptionConfig):
    """Keys of an ``image_text_tars`` block."""

    storage: Union[str, list[str]] = MISSING  # noqa: UP007
    """Tars with images and captions, <key>.jpg and <key>.json with "caption", as img2dataset writes them: a folder, one tar, or
    several as laion/{00000..10488}.tar or laion/*.tar; or a list of these. The first start indexes them."""
    stream: bool = False
    """Whether tars at URLs are read in parts during training, shortly before they are needed, instead of being downloaded at the
    start (docs/data.md, Streaming). Has no effect on local files."""
    text_processor: Literal["blip_caption", "verbatim"] = "blip_caption"
    """How target texts are changed before tokenization. blip_caption: lower case, most punctuation removed, cut to max_words.
    verbatim: unchanged."""
    max_words: int = 50
    """Maximum number of words of a target text, to which blip_caption cuts it."""
    shuffle_window: int = 4
    """Number of tars whose images are shuffled together; the tars come in random order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "shuffle_window")
        if not self.storage or not all(self.patterns()):
            raise ValueError("storage is empty; set it to the tars with images and captions")

    def patterns(self) -> list[str]:
        """Return the values of ``storage``."""
        return [self.storage] if isinstance(self.storage, str) else self.storage

"""Keys of the blocks under ``encoders``, for each registered encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from emollama.config import MISSING
from emollama.data.slots import PATCH, FrameSelection
from emollama.dtypes import ComputeDtype
from emollama.encoders.shapes import EVA_HEAD, IDENTITY
from emollama.errors import require_at_least
from emollama.field_texts import documented
from emollama.media.frame_selection import FaceChoice

FACE_KEYS = ("face", "max_frames")  # settings without effect if extraction.face_path provides images of faces
MIN_SECONDS = 1  # shorter sound is padded with silence; a shorter rest of long sound is appended to the last chunk


@documented
@dataclass
class EncoderConfig:
    """Keys that all encoders share."""

    weights: str = MISSING
    """Local folder or file of the pretrained weights. Nothing is downloaded."""
    folder: str = MISSING
    """Name of the folder for this encoder's features in extraction.output."""
    batch_size: int = 8
    """Number of frames, faces, clips or chunks of sound that are encoded together. Features do not depend on it beyond
    rounding."""
    precision: ComputeDtype = "fp32"
    """Precision of the encoder's computations: fp32, or mixed precision with bf16 or fp16. The results are float32 in any
    case."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type of the stored arrays."""
    random_weights: bool = False
    """Use random weights in place of pretrained ones, for tests. The features are meaningless."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size")


@documented
@dataclass
class PixelConfig(EncoderConfig):
    """Keys of the encoders that read images."""

    image_mean: list[float] | None = None
    """Mean of red, green and blue, subtracted from pixels in [0, 1]. If null, the values of the weights' preprocessor are used,
    or ImageNet's for a .pth file."""
    image_std: list[float] | None = None
    """Standard deviation of red, green and blue, by which the pixels are divided afterwards. If null, it is chosen as for
    image_mean. [0, 0, 0] and [1, 1, 1] leave pixels unchanged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        values = [value for value in (self.image_mean, self.image_std) if value is not None]
        if len(values) == 1 or any(len(value) != 3 for value in values) or 0 in (self.image_std or ()):
            raise ValueError(
                f"image_mean is {self.image_mean} and image_std is {self.image_std}; set both to three numbers (image_std without"
                " zeros), or neither"
            )


@documented
@dataclass
class FaceConfig(PixelConfig):
    """Keys of the encoders that read faces."""

    face: FaceChoice = "detect"
    """How to find faces if extraction.face_path is null. detect: the largest face in a frame. centre: the centre of the frame."""
    max_frames: int = 32
    """Number of equally spaced frames per clip in which faces are searched, if extraction.face_path is null."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "max_frames")

    @property
    def face_settings(self) -> dict[str, Any]:
        """The keys of this class as part of an encoder's settings."""
        return {name: getattr(self, name) for name in FACE_KEYS}


@documented
@dataclass
class EvaConfig(EncoderConfig):
    """Keys of an ``eva`` block. ``weights`` is a file such as eva_vit_g.pth."""

    folder: str = "eva"
    """Name of the folder for this encoder's features in extraction.output."""
    image_size: int = 448
    """Height and width in pixels that frames are resized to. Position embeddings for other sizes are interpolated."""
    frame_selection: FrameSelection = "first"
    """Which frame of a clip is encoded. Published checkpoints were trained with the first one. For your own training, peak is
    better than middle, and middle is better than first. random depends on the clip's name and is the same each time."""
    ln_vision: str = IDENTITY
    """Layer norm after the transformer: identity as in minigpt_v2 and Emotion-LLaMA, or BLIP-2's Q-Former file for minigpt4.
    The wrong choice gives wrong features without an error."""
    depth: int = 39
    """Number of transformer layers that are used. The published file contains one more."""
    width: int = 1408
    """Hidden size of the transformer if random_weights is True. Otherwise the hidden size of the weights is used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 2 * PATCH or self.image_size % (2 * PATCH):
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of {2 * PATCH} (two patches)")
        if self.width % EVA_HEAD:
            raise ValueError(f"width is {self.width}; it must be a multiple of {EVA_HEAD} (the width of an attention head)")
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; it must be at least 1")


@documented
@dataclass
class MaeConfig(FaceConfig):
    """Keys of a ``mae`` block. ``weights`` is a Hugging Face folder, or an original MAE file (.pth).

    The published mae_340 features were computed from OpenFace's images in [0, 1]: ``image_mean: [0, 0, 0]`` and
    ``image_std: [1, 1, 1]``.
    """

    folder: str = "mae_340_UTT"
    """Name of the folder for this encoder's features in extraction.output."""
    batch_size: int = 32
    """Number of frames, faces, clips or chunks of sound that are encoded together. Features do not depend on it beyond
    rounding."""
    pooling: Literal["cls", "patches"] = "cls"
    """Vector of an image, after the final norm. cls: the class token, as in the published features. patches: the mean over the
    patches."""


@documented
@dataclass
class VideoMaeConfig(FaceConfig):
    """Keys of a ``videomae`` block. ``weights`` is a Hugging Face folder, or an original VideoMAE file (.pth).

    The published maeV_399 features were computed from OpenFace's images in [0, 1], in pairs, without the final norm:
    ``images: faces``, ``sampling: pairs``, ``final_norm: False``, ``image_mean: [0, 0, 0]``, ``image_std: [1, 1, 1]``.
    """

    folder: str = "maeV_399_UTT"
    """Name of the folder for this encoder's features in extraction.output."""
    images: Literal["frames", "faces"] = "frames"
    """Input images: entire frames, or the faces in them."""
    sampling: Literal["middles", "pairs"] = "middles"
    """Which 16 frames are used. middles: the middle frame of each of 16 equal segments. pairs: two consecutive frames in the
    middle of each of 8 segments."""
    final_norm: bool | None = None
    """Apply the norm after the last layer before the mean over tokens. If null, this depends on how the weights were trained:
    True for pretrained and False for fine-tuned weights."""


@documented
@dataclass
class HubertConfig(EncoderConfig):
    """Keys of a ``hubert`` block. ``weights`` is a Hugging Face folder. Each clip is encoded alone for any batch_size."""

    folder: str = "HL-UTT"
    """Name of the folder for this encoder's features in extraction.output."""
    layers: list[int] = field(default_factory=lambda: [-1])
    """Layers whose states are summed, counted from the last one, -1. The published features are those of the last layer only.
    Checkpoints that were trained with them do not work with other sums, such as [-4, -3, -2, -1]."""
    chunk_seconds: float = 30.0
    """Longer sound is encoded in chunks of this length, in seconds. The features are the mean over all chunks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or max(self.layers) > -1 or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers is {self.layers}; expected different negative numbers, counted from the last layer, -1")
        require_at_least(MIN_SECONDS, self, "chunk_seconds")

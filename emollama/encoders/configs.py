"""Keys of the registered encoders' blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from emollama.config import MISSING
from emollama.data.slots import PATCH
from emollama.dtypes import Arithmetic
from emollama.encoders.shapes import EVA_HEAD, IDENTITY
from emollama.errors import require_at_least
from emollama.media.frame_selection import FaceChoice, FrameChoice

FACE_KEYS = ("face", "max_frames")  # entries of a recipe that have no effect where images of faces are given
SHORTEST = 1  # seconds; shorter sound is padded with silence, a shorter rest of long sound stays with the piece before


@dataclass
class EncoderConfig:
    """Keys that all encoders share."""

    weights: str = MISSING
    """Where the pretrained weights lie: a local folder or file; nothing is downloaded."""
    folder: str = MISSING
    """Name of the folder of this encoder's features, below extraction.output."""
    batch_size: int = 8
    """Images, clips or pieces of sound that are encoded together. Features do not depend on it beyond rounding."""
    precision: Arithmetic = "fp32"
    """Arithmetic of the encoder: fp32, or mixed with bf16 or fp16. Features are float32 in any case."""
    dtype: Literal["float32", "float16"] = "float32"
    """Values of the stored arrays."""
    random_weights: bool = False
    """Take random weights in place of pretrained ones, for tests: the features mean nothing."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size")


@dataclass
class PixelConfig(EncoderConfig):
    """Keys of the encoders that look at images."""

    image_mean: list[float] | None = None
    """Subtracted from the red, green and blue of pixels in [0, 1]. Null: what belongs to the weights, ImageNet's for a .pth."""
    image_std: list[float] | None = None
    """Divides them after that. Null as for image_mean; [0, 0, 0] and [1, 1, 1] leave the pixels as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [values for values in (self.image_mean, self.image_std) if values is not None]
        if len(given) == 1 or any(len(values) != 3 for values in given) or 0 in (self.image_std or ()):
            raise ValueError(
                f"image_mean is {self.image_mean} and image_std {self.image_std}; give three numbers each, or neither"
            )


@dataclass
class FaceConfig(PixelConfig):
    """Keys of the encoders that look at faces."""

    face: FaceChoice = "detect"
    """Where extraction.face_path gives no images: detect finds the largest face of a frame, centre cuts its centre out."""
    max_frames: int = 32
    """Where extraction.face_path gives no images: frames of a clip, equally spaced, whose faces are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "max_frames")

    @property
    def face_recipe(self) -> dict[str, Any]:
        """These keys, as part of a recipe."""
        return {name: getattr(self, name) for name in FACE_KEYS}


@dataclass
class EvaConfig(EncoderConfig):
    """Keys of an ``eva`` block; ``weights`` is a file such as eva_vit_g.pth."""

    folder: str = "eva"
    """Name of the folder of this encoder's features, below extraction.output."""
    image_size: int = 448
    """Side that frames are resized to, in pixels; positions are interpolated where the weights are for another."""
    frame_selection: FrameChoice = "first"
    """Which frame is taken. Published checkpoints saw the first; for training of your own: peak is better than middle, and
    middle than first. random is the same frame each time, by the clip's name."""
    ln_vision: str = IDENTITY
    """The norm behind the transformer: identity as in minigpt_v2 and Emotion-LLaMA, or BLIP-2's Q-Former file for minigpt4.
    The one in place of the other gives wrong features silently."""
    depth: int = 39
    """Blocks that run; the published file holds one more."""
    width: int = 1408
    """With random_weights: width of the transformer. Else the file tells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 2 * PATCH or self.image_size % (2 * PATCH):
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of {2 * PATCH}, two patches")
        if self.width % EVA_HEAD:
            raise ValueError(f"width is {self.width}; it must be a multiple of {EVA_HEAD}, a head")
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; at least one block must run")


@dataclass
class MaeConfig(FaceConfig):
    """Keys of a ``mae`` block; ``weights`` is a Hugging Face folder, or an original MAE file (.pth).

    The published mae_340 features were made of OpenFace's images in [0, 1]: ``image_mean: [0, 0, 0]`` and
    ``image_std: [1, 1, 1]``.
    """

    folder: str = "mae_340_UTT"
    """Name of the folder of this encoder's features, below extraction.output."""
    batch_size: int = 32
    """Face images that are encoded together. Features do not depend on it beyond rounding."""
    pooling: Literal["cls", "patches"] = "cls"
    """An image's vector, after the final norm: the class token, as published, or the mean over the patches."""


@dataclass
class VideoMaeConfig(FaceConfig):
    """Keys of a ``videomae`` block; ``weights`` is a Hugging Face folder, or an original VideoMAE file (.pth).

    The published maeV_399 features were made of OpenFace's images in [0, 1], in pairs, without the norm: ``images: faces``,
    ``sampling: pairs``, ``final_norm: False``, ``image_mean: [0, 0, 0]``, ``image_std: [1, 1, 1]``.
    """

    folder: str = "maeV_399_UTT"
    """Name of the folder of this encoder's features, below extraction.output."""
    images: Literal["frames", "faces"] = "frames"
    """What the frames show: all of the video's frame, or the face in it."""
    sampling: Literal["middles", "pairs"] = "middles"
    """Which 16 frames: the middle one of each of 16 equal segments, or two neighbours in the middle of each of 8."""
    final_norm: bool | None = None
    """Whether tokens pass the norm behind the last layer before their mean is taken. Null: as the weights were trained, which
    is True for those of pretraining and False for fine-tuned ones."""


@dataclass
class HubertConfig(EncoderConfig):
    """Keys of a ``hubert`` block; ``weights`` is a Hugging Face folder. A clip is encoded alone, whatever batch_size is."""

    folder: str = "HL-UTT"
    """Name of the folder of this encoder's features, below extraction.output."""
    layers: list[int] = field(default_factory=lambda: [-1])
    """Layers whose states are summed, counted from the last, which is -1. Published features are of the last alone; the sum
    of [-4, -3, -2, -1] is another vector, of which checkpoints trained on the last know nothing."""
    chunk_seconds: float = 30.0
    """Longer sound is encoded in pieces of so many seconds, and the mean taken over all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or max(self.layers) > -1 or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers is {self.layers}; count each once, from the last: -1, -2, ...")
        if self.chunk_seconds < SHORTEST:
            raise ValueError(f"chunk_seconds is {self.chunk_seconds}; it must be at least {SHORTEST}")

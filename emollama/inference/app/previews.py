"""What the encoders get of a clip, for display: a frame, a face and the loudness of the sound.

Letters: H height, W width of an image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emollama.config import RunConfig
from emollama.encoders.decoding_process import DecodingProcess
from emollama.encoders.decoding_worker import DecodingLimits
from emollama.encoders.encoder import Encoder
from emollama.media.audio import read_audio
from emollama.media.faces import face_images
from emollama.media.frame_selection import FaceChoice
from emollama.media.frames import read_frames
from emollama.media.source import MediaLimits, Source, UnusableMedia

SIDE = 320  # the longer side of a picture, in pixels
PARTS = 240  # of the sound, one line of the waveform each
FRAME, FACE, SOUND = "frame", "face", "sound"
FACES = 9  # frames in which a face is searched


@dataclass(frozen=True)
class Previews:
    """Pictures and loudness of a clip.

    Attributes:
        frame: the middle frame as PNG; None if the video cannot be decoded.
        frame_problem: why there is no frame; "" if there is one.
        face: a face as PNG; None if there is none.
        face_problem: why there is no face; "" if there is one.
        loudness: amplitudes in [0, 1] of equal parts of the sound; empty if there is no sound.
        sound_problem: why there is no sound; "" if there is one.
    """

    frame: bytes | None
    frame_problem: str
    face: bytes | None
    face_problem: str
    loudness: tuple[float, ...]
    sound_problem: str


# Decodes a clip for display: its path, and whether nobody wants the previews any more.
ReadPreviews = Callable[[str, Callable[[], bool]], Previews]


class PreviewReader:
    """Decodes clips for display in a separate process, which does no harm if a file crashes a decoder.

    Args:
        config: the configuration, which says where its face encoder looks for the face.
        limits: the largest clips that are decoded.
        seconds: maximum time of decoding each part of a clip.
    """

    def __init__(self, config: RunConfig, limits: MediaLimits, seconds: float) -> None:
        choices = (getattr(encoder, "face", None) for encoder in config.encoders.values())
        find: FaceChoice = next((choice for choice in choices if choice is not None), "detect")
        # The process calls these classes as it calls encoders.
        loader = cast("type[Encoder]", _PreviewLoader)
        decoding = DecodingLimits(cpu_seconds=math.ceil(seconds), seconds=seconds)
        self._process = DecodingProcess({kind: (loader, (kind, find)) for kind in (FRAME, FACE, SOUND)}, decoding)
        self._process.start()
        self._limits = limits

    def __call__(self, video: str, is_over: Callable[[], bool]) -> Previews:
        """Decode a clip. What cannot be decoded has a problem instead.

        Args:
            video: path of the clip.
            is_over: whether nobody wants the previews any more.

        Raises:
            CancelledError: If nobody wants them any more.
        """
        loaded = self._process.load(Source("clip", Path(video), limits=self._limits), (FRAME, FACE, SOUND), is_over)
        problems = {kind: str(result) for kind, result in loaded.items() if isinstance(result, UnusableMedia)}
        arrays = {kind: result.numpy() for kind, result in loaded.items() if isinstance(result, Tensor)}
        return Previews(
            _png(arrays.get(FRAME)),
            problems.get(FRAME, ""),
            _png(arrays.get(FACE)),
            problems.get(FACE, ""),
            tuple(round(float(value), 3) for value in arrays.get(SOUND, ())),
            problems.get(SOUND, ""),
        )

    def close(self) -> None:
        """End the process."""
        self._process.close()


class _PreviewLoader:
    """Decodes one kind of preview in the separate process. The arguments are those of an encoder."""

    def __init__(self, cfg: tuple[str, FaceChoice], *, device: torch.device, key: str) -> None:
        self._kind, self._find = cfg

    def load(self, source: Source) -> Tensor:
        """Return a picture (H, W, 3) uint8, or the largest amplitudes of parts of the sound in [0, 1], (PARTS,)."""
        if self._kind == FRAME:
            return _reduced(read_frames(source.video, lambda count: [count // 2], source.limits)[0])
        if self._kind == FACE:
            faces = face_images(source, self._find, FACES)
            return _reduced(faces[len(faces) // 2])
        sound = np.abs(read_audio(source.video, limits=source.limits))
        return torch.tensor([part.max() for part in np.array_split(sound, min(PARTS, len(sound)))])


def _reduced(image: np.ndarray) -> Tensor:
    """Reduce an image (H, W, 3) to :data:`SIDE`."""
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    return torch.from_numpy(np.array(picture))


def _png(image: np.ndarray | None) -> bytes | None:
    """Encode an image (H, W, 3) as PNG."""
    if image is None:
        return None
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()

"""The input of an encoder: the video of a clip and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_PIXELS = 89_478_485  # per image, the limit of Pillow: 256 MB as RGB


class UnusableMedia(ValueError):
    """Raised if a clip cannot be encoded, for example because its video is damaged. The message does not name the clip."""


@dataclass(frozen=True)
class MediaLimits:
    """The largest media that are decoded. The defaults are meant for files of the user, not for uploads.

    Attributes:
        max_pixels: largest width times height of a frame or an image.
        max_seconds: longest duration of a video or audio track.
        max_frames: largest number of frames of a video.
    """

    max_pixels: int = MAX_PIXELS
    max_seconds: float = 24 * 60 * 60
    max_frames: int = 24 * 60 * 60 * 60


DEFAULT_LIMITS = MediaLimits()


@dataclass(frozen=True)
class Source:
    """A clip whose features are to be computed.

    Attributes:
        name: the clip's name.
        video: path of its video, which may be damaged. An image counts as a video of one frame without audio. A file that has
            only audio has no frames.
        faces: folder of face images written by OpenFace; None to search for faces in the frames.
        peak: index of its most expressive frame, from 0; None if it is unknown.
        audio: path of an audio file that replaces the audio of the video; None to use the audio of the video.
        limits: the largest media that are decoded.
    """

    name: str
    video: Path
    faces: Path | None = None
    peak: int | None = None
    audio: Path | None = None
    limits: MediaLimits = DEFAULT_LIMITS

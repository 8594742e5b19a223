"""The input of an encoder: the video of a clip and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class UnusableMedia(ValueError):
    """Raised if a clip cannot be encoded, for example because its video is damaged. The message does not name the clip."""


@dataclass(frozen=True)
class Source:
    """A clip whose features are to be computed.

    Attributes:
        name: the clip's name.
        video: path of its video, which may be damaged.
        faces: folder of face images written by OpenFace; None to search for faces in the frames.
        peak: index of its most expressive frame, from 0; None if it is unknown.
    """

    name: str
    video: Path
    faces: Path | None = None
    peak: int | None = None

"""A clip as its encoders find it: where its video lies, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class UnusableMedia(ValueError):
    """A clip that an encoder can make nothing of: a broken video, no sound, no face. The text says why, but not which clip."""


@dataclass(frozen=True)
class Source:
    """One clip before its features.

    Attributes:
        name: the clip.
        video: its file, which may be broken.
        faces: folder of its face images, as OpenFace writes them; None where faces are to be found in the frames.
        peak: number of its most expressive frame, from 0; None where nobody said.
    """

    name: str
    video: Path
    faces: Path | None = None
    peak: int | None = None

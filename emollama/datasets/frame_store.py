"""An array store that reads frames of videos, which the model encodes itself instead of reading cached features."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from emollama.data.features import Features
from emollama.data.slots import PIXELS, FrameSelection, SlotShape
from emollama.errors import UserError
from emollama.media.files import find_video
from emollama.media.frame_pixels import FramePixels
from emollama.media.frame_selection import read_peaks
from emollama.media.frames import probe
from emollama.media.source import Source
from emollama.paths import require_folder

REMEDY = "Replace the video, or leave the clip out (exclude)."


def open_frames(folder: str, shape: SlotShape | None, block_path: str, choice: FrameSelection, peaks: str | None) -> Features:
    """Open a folder of videos as the source of the slot ``frame``.

    Args:
        folder: the folder of the videos.
        shape: shape of the slot ``frame``; None if the model has no image encoder.
        block_path: path of the dataset's config block, for messages.
        choice: which frame of a video is read.
        peaks: path of the file with the most expressive frames; required by ``peak``.

    Raises:
        UserError: If the model has no image encoder, the folder does not exist, or ``peak`` has no file.
    """
    if shape is None:
        raise UserError(
            f"{block_path}: features.image is null, so the model would encode frames of image_path, but model.vit_weights is"
            " null. Set model.vit_weights to the encoder's weights, or features.image to EVA features, or image_path: null."
        )
    require_folder(folder, f"{block_path}.image_path", "It is relative to data_root. Correct the path.")
    if choice == "peak" and peaks is None:
        raise UserError(
            f"{block_path}.frame_selection: peak needs a file with the most expressive frames. Set {block_path}.peak_index_path."
        )
    peak_frames = read_peaks(peaks) if choice == "peak" and peaks is not None else {}
    store = FrameStore(folder, round((shape.dim / 3) ** 0.5), choice, peak_frames)
    return Features(store, folder, (PIXELS,), shape, f"{block_path}.image_path", REMEDY, frame_selection=choice)


@dataclass(frozen=True)
class FrameStore:
    """Maps a clip name to the normalised pixels of one frame, (1, 3 x side x side) float32.

    Implements ``emollama.stores.store.ArrayStore``.

    Attributes:
        folder: the folder of the videos.
        side: width and height to which frames are resized, in pixels.
        choice: which frame of a video is read.
        peaks: clip name -> index of its most expressive frame.
    """

    folder: str
    side: int
    choice: FrameSelection
    peaks: Mapping[str, int] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        return find_video(self.folder, str(name)) is not None and (self.choice != "peak" or name in self.peaks)

    def names(self) -> Iterable[str]:
        """Return no names: the folder is not listed, because only clips of the annotation file are read."""
        return ()

    def load(self, name: str) -> np.ndarray:
        """Read the pixels of the frame.

        Raises:
            FileNotFoundError: If the clip has no video.
            UnusableMedia: If the frame cannot be read.
        """
        return FramePixels(self.side, self.choice).load(self._source(name)).numpy()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype after opening the video, without decoding it.

        Raises:
            FileNotFoundError: If the clip has no video.
            UnusableMedia: If the video cannot be opened.
        """
        probe(self._source(name).video)
        return (1, 3 * self.side**2), np.dtype(np.float32)

    def location(self, name: str) -> str:
        """Return the path of the video."""
        return str(self._source(name).video)

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return size, times and inode of the video, and a checksum of the settings that select the frame."""
        status = os.stat(self.location(name))
        settings = zlib.crc32(f"{self.side} {self.choice} {self.peaks.get(name)}".encode())
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, settings

    def is_intact(self, name: str) -> None:
        """Return None, because videos have no recorded digests."""

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return None, because separate files can be read in any order."""
        return None

    def _source(self, name: str) -> Source:
        video = find_video(self.folder, name)
        if video is None:
            raise FileNotFoundError(f"no video of '{name}' in {self.folder}")
        return Source(name, video, peak=self.peaks.get(name))

"""Frames of videos, read like a store of arrays: what an image encoder inside the model is given in place of cached rows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from emollama.data.features import Features
from emollama.data.slots import FRAME, SlotShape
from emollama.errors import UserError
from emollama.media.files import find_video
from emollama.media.frame_selection import FrameChoice, chosen_frame, read_peaks
from emollama.media.frames import probe, read_frames
from emollama.media.image_transforms import blip2_image
from emollama.media.source import Source
from emollama.paths import PATHS, looked_up, not_found

REMEDY = "Replace the video, or leave the clip out (exclude)."


def open_frames(folder: str, shape: SlotShape | None, label: str, choice: FrameChoice, peaks: str | None) -> Features:
    """The frames of a dataset's videos, for the image encoder inside the model.

    Args:
        folder: of the videos.
        shape: of the slot of frames; None where the model has no encoder.
        label: the dataset's block, for messages.
        choice: which frame is taken.
        peaks: the file that says where the peaks are, for ``peak``.

    Raises:
        UserError: no encoder, no such folder, or peaks without their file.
    """
    if shape is None:
        raise UserError(
            f"{label}: image_feature_path is null, so frames of image_path would go through the model's image encoder, but"
            " model.vit_weights is null. Name its weights there, or caches in image_feature_path, or set image_path: null."
        )
    if not looked_up(PATHS.isdir, folder, f"{label}.image_path"):
        raise not_found(f"{label}.image_path", folder, "It starts at data_root. Correct the path.", what="folder")
    if choice == "peak" and peaks is None:
        raise UserError(f"{label}.frame_selection: peak needs peak_index_path, which says where the peaks are")
    found = read_peaks(peaks) if choice == "peak" and peaks is not None else {}
    store = FrameStore(folder, round((shape.width / 3) ** 0.5), choice, found)
    return Features(store, folder, (FRAME,), shape, f"{label}.image_path", REMEDY)


@dataclass(frozen=True)
class FrameStore:
    """Clip name -> one frame's normalised pixels, (1, 3 x side x side) float32. Fulfils ``emollama.stores.store.ArrayStore``.

    Attributes:
        folder: of the videos.
        side: that frames are resized to, in pixels.
        choice: which frame is taken.
        peaks: clip -> number of its most expressive frame.
    """

    folder: str
    side: int
    choice: FrameChoice
    peaks: Mapping[str, int] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        return find_video(self.folder, str(name)) is not None and (self.choice != "peak" or name in self.peaks)

    def names(self) -> Iterable[str]:
        """Nobody asks which videos there are beside the listed ones."""
        return ()

    def load(self, name: str) -> np.ndarray:
        """The pixels.

        Raises:
            UnusableMedia: no frame can be read.
        """
        source = self._source(name)
        (frame,) = read_frames(source.video, lambda count: [chosen_frame(self.choice, count, source)])
        return blip2_image(frame, self.side).reshape(1, -1).numpy()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype; opens the video without decoding it.

        Raises:
            UnusableMedia: it cannot be opened.
        """
        probe(self._source(name).video)
        return (1, 3 * self.side**2), np.dtype(np.float32)

    def place(self, name: str) -> str:
        """The video's path."""
        return str(self._source(name).video)

    def stamp(self, name: str) -> tuple[int, ...]:
        """Size, times and inode of the video, and what is taken from it."""
        status = os.stat(self.place(name))
        taken = zlib.crc32(f"{self.side} {self.choice} {self.peaks.get(name)}".encode())
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, taken

    def groups(self, names: Sequence[str]) -> np.ndarray | None:
        """None: any order of files is as good."""
        return None

    def _source(self, name: str) -> Source:
        video = find_video(self.folder, name)
        if video is None:
            raise FileNotFoundError(f"no video of '{name}' in {self.folder}")
        return Source(name, video, peak=self.peaks.get(name))

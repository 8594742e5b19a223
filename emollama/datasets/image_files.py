"""Images, read like a store of arrays: what an image encoder inside the model is given."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emollama.data.features import Features, FileCheck
from emollama.data.slots import FRAME, SlotShape
from emollama.errors import UserError
from emollama.media.frame_selection import FrameChoice
from emollama.media.image_files import probe_picture, read_picture
from emollama.media.image_transforms import blip2_image

REMEDY = "Replace the image, leave it out (exclude), or set missing_images: skip."


def open_images(folder: str, files: Mapping[str, str], shape: SlotShape | None, key: str) -> Features:
    """Images of a folder, for the image encoder inside the model.

    Args:
        folder: of the images.
        files: name -> file below the folder, of the images that are there.
        shape: of the slot of frames; None where the model has no encoder.
        key: the configuration key that named the folder, for messages.

    Raises:
        UserError: no encoder.
    """
    if shape is None:
        text = f"{key}: images go through the model's image encoder, but model.vit_weights is null"
        raise UserError(f"{text}. Name the encoder's weights there.")
    return ImageFeatures(ImageFiles(folder, files, round((shape.width / 3) ** 0.5)), folder, (FRAME,), shape, key, REMEDY)


@dataclass(frozen=True)
class ImageFiles:
    """Image's name -> its normalised pixels, (1, 3 x side x side) float32. Fulfils ``emollama.stores.store.ArrayStore``.

    Attributes:
        folder: of the images.
        files: name -> file below the folder, of the images that are there.
        side: that images are resized to, in pixels.
        choice: an image is its own first frame.
    """

    folder: str
    files: Mapping[str, str]
    side: int
    choice: FrameChoice = "first"

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def names(self) -> Iterable[str]:
        """Nobody asks which images there are beside the listed ones."""
        return ()

    def load(self, name: str) -> np.ndarray:
        """The pixels.

        Raises:
            UnusableMedia: no image that can be read.
        """
        return blip2_image(read_picture(self.place(name)), self.side).reshape(1, -1).numpy()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype; opens the file without decoding it where it seems whole.

        Raises:
            UnusableMedia: no image that can be read.
        """
        probe_picture(self.place(name))
        return (1, 3 * self.side**2), np.dtype(np.float32)

    def place(self, name: str) -> str:
        """The file's path."""
        return os.path.join(self.folder, self.files[name])

    def stamp(self, name: str) -> tuple[int, ...]:
        """Size, times and inode of the file."""
        status = os.stat(self.place(name))
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    def groups(self, names: Sequence[str]) -> np.ndarray | None:
        """None: any order of files is as good."""
        return None


@dataclass(frozen=True)
class ImageFeatures(Features):
    """The images of a dataset. A look at one opens it; decoding tens of thousands would take minutes before each first start."""

    def _first_look(self, name: str, file_size: int, values_up_to: int) -> FileCheck:
        if values_up_to == sys.maxsize:
            return super()._first_look(name, file_size, values_up_to)
        shape, dtype = self._stored(self.store.header, name)
        return FileCheck(str(dtype), str(shape), str(int(np.prod(shape)) * dtype.itemsize), "")

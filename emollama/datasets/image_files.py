"""An array store that reads image files, which the model encodes itself."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emollama.data.array_cache import FileCheck
from emollama.data.features import Features
from emollama.data.slots import PIXELS, SlotShape
from emollama.errors import UserError
from emollama.media.image_files import probe_image, read_image
from emollama.media.image_transforms import blip2_image
from emollama.stores.store import ArrayStore

REMEDY = "Replace the image, leave it out (exclude), or set missing_images: skip."


def image_side(shape: SlotShape | None, key: str) -> int:
    """Return the width and height in pixels of the images that a model encodes.

    Args:
        shape: shape of the slot ``frame``; None if the model has no image encoder.
        key: the configuration key that named the images, for messages.

    Raises:
        UserError: If the model has no image encoder.
    """
    if shape is None:
        text = f"{key}: the model encodes the images, but model.vit_weights is null"
        raise UserError(f"{text}. Set model.vit_weights to the encoder's weights.")
    return math.isqrt(shape.dim // 3)


def image_features(store: ArrayStore, path: str, side: int, key: str) -> Features:
    """Return the images of a store as the source of the slot ``frame``.

    Args:
        store: maps names to pixels (1, 3 x side x side).
        path: the configured path of the images.
        side: width and height of the images, in pixels.
        key: the configuration key that named the path, for messages.
    """
    # An image is its only frame.
    return ImageFeatures(store, path, (PIXELS,), SlotShape(1, 3 * side**2), key, REMEDY, frame_selection="first")


@dataclass(frozen=True)
class ImageFiles:
    """Maps an image name to its normalised pixels, (1, 3 x side x side) float32.

    Implements ``emollama.stores.store.ArrayStore``.

    Attributes:
        folder: the folder of the images.
        files: name -> path below the folder, of the existing images.
        side: width and height to which images are resized, in pixels.
    """

    folder: str
    files: Mapping[str, str]
    side: int

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def names(self) -> Iterable[str]:
        """Return no names: the folder is not listed, because only images of the caption file are read."""
        return ()

    def load(self, name: str) -> np.ndarray:
        """Read the pixels.

        Raises:
            UnusableMedia: If the image cannot be read.
        """
        return blip2_image(read_image(self.location(name)), self.side).reshape(1, -1).numpy()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype after opening the file; it is decoded only if it seems incomplete.

        Raises:
            UnusableMedia: If the image cannot be read.
        """
        probe_image(self.location(name))
        return (1, 3 * self.side**2), np.dtype(np.float32)

    def location(self, name: str) -> str:
        """Return the path of the file."""
        return os.path.join(self.folder, self.files[name])

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return size, times and inode of the file."""
        status = os.stat(self.location(name))
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    def is_intact(self, name: str) -> None:
        """Return None, because images have no recorded digests."""

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return None, because separate files can be read in any order."""
        return None


@dataclass(frozen=True)
class ImageFeatures(Features):
    """The images of a dataset.

    By default, a check opens each image without decoding it, because decoding tens of thousands of images takes minutes.
    """

    def _check_array(self, name: str, file_size: int, values_up_to: int) -> FileCheck:
        if values_up_to == sys.maxsize:
            return super()._check_array(name, file_size, values_up_to)
        shape, dtype = self._from_store(self.store.header, name)
        return FileCheck(str(dtype), str(shape), str(int(np.prod(shape)) * dtype.itemsize), "")

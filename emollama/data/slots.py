"""Slots: the names under which a sample's features reach the model, and the shapes that the model expects."""

from __future__ import annotations

from typing import NamedTuple

PATCH = 14  # side of an EVA patch in pixels
FRAME = "frame"  # slot of pixels from which an image encoder inside the model makes the rows of IMAGE
IMAGE = ("image", "cls")


class SlotShape(NamedTuple):
    """What a model expects of a slot.

    Attributes:
        rows: of one clip; checked for the image, and how a missing slot is filled with zeros.
        width: D of each row; checked.
    """

    rows: int
    width: int


class CachedShape(SlotShape):
    """Of a slot whose rows the model makes of frames, and keeps.

    Attributes:
        cache_folder: the folder with the cached features (:mod:`emollama.stores.feature_cache`).
    """

    cache_folder: str

    @classmethod
    def of(cls, shape: SlotShape, folder: str) -> CachedShape:
        """The shape with its folder."""
        made = cls(*shape)
        made.cache_folder = folder
        return made

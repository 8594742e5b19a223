"""Slots: the names under which a sample's features reach the model, and the shapes that the model expects."""

from __future__ import annotations

from typing import NamedTuple

PATCH = 14  # side of an EVA patch in pixels
PIXELS = "frame"  # slot of a frame's or an image's pixels, which an encoder inside the model replaces by the slots of IMAGE
IMAGE = ("image", "cls")


class SlotShape(NamedTuple):
    """The shape that a model expects of a slot's features.

    Attributes:
        num_vectors: number of feature vectors per sample. Arrays of the slot "image" must have this number; for any slot it is
            the number of zero vectors that replace a missing array.
        dim: size D of each feature vector; arrays must have it.
    """

    num_vectors: int
    dim: int


class CachedShape(SlotShape):
    """The shape of a slot whose features the model computes from frames and caches.

    Attributes:
        cache_folder: the folder with the cached features (:mod:`emollama.stores.feature_cache`).
    """

    cache_folder: str

    @classmethod
    def of(cls, shape: SlotShape, folder: str) -> CachedShape:
        """Return the shape together with its cache folder."""
        cached_shape = cls(*shape)
        cached_shape.cache_folder = folder
        return cached_shape

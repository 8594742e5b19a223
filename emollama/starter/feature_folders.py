"""Folders of arrays: the slot that they fill and the shape of their arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.errors import UserError
from emollama.stores.manifest import Manifest
from emollama.stores.store import ArrayStore, open_store

# The first pattern that matches decides. "maeV" must come before "mae", which it contains.
SLOT_NAMES = (
    ("video", re.compile(r"maev|videomae|video", re.IGNORECASE)),
    ("audio", re.compile(r"^hl\b|^hl[-_]|hubert|audio|wav|speech", re.IGNORECASE)),
    ("image", re.compile(r"eva|vit|clip|image", re.IGNORECASE)),
    ("face", re.compile(r"mae|face", re.IGNORECASE)),
)


@dataclass(frozen=True)
class FeatureFolder:
    """A folder of arrays, one for each clip.

    Attributes:
        path: the folder.
        slot: the slot of its manifest, or the one that its name suggests; None if neither identifies it.
        shape: shape of its first array.
        store: reader of the arrays.
        manifest: how the arrays were computed; None if the folder does not say.
    """

    path: Path
    slot: str | None
    shape: tuple[int, ...]
    store: ArrayStore
    manifest: Manifest | None = None

    @property
    def width(self) -> int:
        """Dimension of the feature vectors."""
        return self.shape[-1]

    @property
    def image_size(self) -> int | None:
        """Frame size in pixels behind EVA features of shape (1 + (size / 14)^2, width); None for other numbers of rows."""
        patches = (self.shape[0] if len(self.shape) == 2 else 0) - 1
        side = round(max(patches, 0) ** 0.5)
        return 14 * side if side and side * side == patches else None

    @property
    def slot_keys(self) -> dict[str, Any]:
        """The keys of the slot in ``model.slots``. For ``image``, ``model.image_size`` determines all but ``dim``."""
        keys: dict[str, Any] = {"dim": self.width}
        if self.manifest is None or self.slot == "image":
            return keys
        if self.manifest.num_vectors != 1:
            keys["length"] = self.manifest.num_vectors
        if len(self.manifest.slots) > 1:
            keys["class_token"] = self.manifest.slots[1]
        return keys

    def coverage(self, names: Iterable[str]) -> int:
        """Return how many of these clips have an array."""
        return sum(name in self.store for name in names)


def open_features(folder: Path) -> FeatureFolder | None:
    """Open a folder of arrays; return None if it contains no readable array."""
    try:
        store = open_store(str(folder), "--data")
        name = min(store.names(), default=None)
        if name is None:  # the clip names contain folders
            first = next(folder.rglob("*.npy"))
            name = first.relative_to(folder).with_suffix("").as_posix()
        shape, _ = store.header(name)
    except (UserError, OSError, ValueError, StopIteration):
        return None
    try:
        manifest = Manifest.read(str(folder))
    except UserError:
        manifest = None
    slot = manifest.slots[0] if manifest is not None else _usual_slot(folder.name)
    return FeatureFolder(folder, slot, shape, store, manifest) if shape else None


def _usual_slot(name: str) -> str | None:
    """Return the slot that the name of a folder suggests, or None."""
    return next((slot for slot, pattern in SLOT_NAMES if pattern.search(name)), None)

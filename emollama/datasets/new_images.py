"""Images that are in no caption file, with the instructions of a block of captioned images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import zeros

from emollama.data.batch import Record
from emollama.data.dataset import ClipsToPredict, DatasetContent
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.slots import PIXELS, SlotShape
from emollama.datasets.caption_dataset import CaptionDataset
from emollama.datasets.image_files import image_features, image_side
from emollama.stores.store import NpyFolder


class NewImages(CaptionDataset):
    """A dataset for evaluation whose samples are new images.

    Args:
        cfg: the block with the instructions.
        clips: the images, whose pixels are arrays of the slot "frame".
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the block, for messages.
    """

    def __init__(self, cfg: Any, clips: ClipsToPredict, *, slot_shapes: Mapping[str, SlotShape], block_path: str) -> None:
        folder, key = clips.features[PIXELS], f"{block_path}.image_path"
        super().__init__(cfg, slot_shapes, block_path=block_path, training=False, source=folder)
        self._names = list(clips.names)
        side = image_side(slot_shapes.get(PIXELS), key)
        self.features = [image_features(NpyFolder.open(Path(folder)), folder, side, key)]

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        """Return the names of the images in order."""
        return list(self._names)

    def digest(self) -> str:
        """Return a hash of the names."""
        return hashlib.sha256(json.dumps(self._names).encode()).hexdigest()[:16]

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Return image ``index`` with an instruction. Zeros replace pixels that do not exist."""
        (source,), name = self.features, self._names[index]
        features = source.read(name) if name in source else {PIXELS: zeros(1, source.shape.dim)}
        return Record(name, task, [(self.user_text(index, task, instruction), None)], self._absent | features)

    def has_reference(self, task: str) -> bool:
        """Return False, because new images have no captions."""
        return False

    def inspect(self) -> DatasetContent:
        """Return no texts."""
        return DatasetContent(listed=self._names, answers={})

    def problems(self) -> list[Problem]:
        """Return no problems, because reading an image reports its own."""
        return []

    def sampling(self) -> DatasetSampling:
        """Return the order of the names."""
        return DatasetSampling(len(self), shuffle=False)


class AcceptsNewImages:
    """The part of a dataset class of captioned images that other images need (``emollama.data.dataset.ClipDataset``)."""

    @classmethod
    def clip_slots(cls, cfg: Any) -> set[str]:
        """Return the slot of pixels."""
        return {PIXELS}

    @classmethod
    def has_sentences(cls, cfg: Any, *, block_path: str) -> bool:
        """Return False, because nobody speaks in an image."""
        return False

    @classmethod
    def for_clips(cls, cfg: Any, clips: ClipsToPredict, *, slot_shapes: Mapping[str, SlotShape], block_path: str) -> NewImages:
        """Build a dataset of new images with the instructions of a block."""
        return NewImages(cfg, clips, slot_shapes=slot_shapes, block_path=block_path)

"""Images with captions in the tars of img2dataset and webdataset, as MiniGPT-4's LAION and Conceptual Captions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from emollama.data.batch import Record
from emollama.data.captions import first_of_each_kind
from emollama.data.dataset import DatasetContent
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.slots import PIXELS, SlotShape
from emollama.datasets.caption_dataset import CaptionDataset
from emollama.datasets.configs import CAPTION_TASK, ImageTextTarsConfig
from emollama.datasets.image_files import image_features, image_side
from emollama.datasets.image_tars import ImageTars
from emollama.datasets.new_images import AcceptsNewImages
from emollama.errors import DownloadError, UserError
from emollama.listing import listing
from emollama.media.source import UnusableMedia
from emollama.stores.feature_cache import FeatureCache

REMEDY = "Repair the sample in the tar, leave it out (exclude), or set missing_images: skip."


class ImageTextTars(AcceptsNewImages, CaptionDataset):
    """The dataset of an ``image_text_tars`` block. Its only task is ``caption``, and each image has one caption.

    Only the positions of the samples are in memory. Captions and images are read when they are needed.

    Args:
        cfg: the dataset's block of the configuration.
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the config block, such as ``datasets.laion``, for messages.
        training: False for evaluation.

    Attributes:
        tars: the samples of the tars.
        features: the pixels of the images.

    Raises:
        UserError: If tars do not exist or cannot be used. Problems of single samples are returned by :meth:`problems`.
    """

    Config = ImageTextTarsConfig

    cfg: ImageTextTarsConfig

    def __init__(
        self, cfg: ImageTextTarsConfig, *, slot_shapes: Mapping[str, SlotShape], block_path: str, training: bool = True
    ) -> None:
        key = f"{block_path}.storage"
        side = image_side(slot_shapes.get(PIXELS), key)
        self.tars = ImageTars.open(cfg.patterns(), side, key, cfg.stream)
        super().__init__(cfg, slot_shapes, block_path=block_path, training=training, source=self.tars.path)
        self.features = [image_features(self.tars, self.tars.path, side, key)]
        self._unusable = [
            problem
            for problem in self.tars.problems()
            if self._is_included(problem.clips[0]) and self._is_selected(problem.clips[0])
        ]
        self._selected = self._select()
        if self._unusable and cfg.missing_images == "skip":
            unusable = listing([problem.clips[0] for problem in self._unusable], "sample")
            self.notes.append(f"{key}: missing_images: skip leaves out {unusable}")
        if not len(self) and (cfg.missing_images == "skip" or not self._unusable):
            raise UserError(f"{key}: no usable sample is left in {self.tars.path}")

    def __len__(self) -> int:
        return len(self.tars) if self._selected is None else len(self._selected)

    def names(self) -> list[str]:
        """Return the names of the samples in order."""
        return [self.tars.name(self._number(index)) for index in range(len(self))]

    def digest(self) -> str:
        """Return a hash of the keys and captions of the tars, and of the selection."""
        digest = hashlib.sha256("".join(index.digest for index in self.tars.indexes).encode())
        if self._selected is not None:
            digest.update(self._selected.tobytes())
        return digest.hexdigest()[:16]

    def sampling(self) -> DatasetSampling:
        """Return how training draws the samples: tars in random order, and the samples of a few tars shuffled together."""
        tar_ids = self.tars.tar_ids()
        selected = tar_ids if self._selected is None else tar_ids[self._selected]
        cfg = self.cfg
        return DatasetSampling(len(self), cfg.sample_ratio, cfg.shuffle, selected, cfg.shuffle_window)

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Return sample ``index`` with an instruction: its pixels, or the features that the model has cached for it."""
        number = self._number(index)
        try:
            caption = self.tars.caption(number)
            features, cache_key = self._read_image(number)
        except DownloadError as error:
            raise UserError(f"{self.block_path}.storage: {error}") from None
        turn = (self.user_text(index, task, instruction), self.process_answer(caption))
        return Record(self.tars.name(number), task, [turn], features, [caption], cache_key)

    @property
    def is_streamed(self) -> bool:
        """Whether images and captions are read from a server when they are needed."""
        return self.tars.is_streamed

    def read_ahead(self, index: int) -> None:
        """Start to read sample ``index`` if it is streamed."""
        if self.tars.is_streamed:
            self.tars.read_ahead(self._number(index))

    def has_reference(self, task: str) -> bool:
        """Return True, because samples without a caption cannot be used."""
        return True

    def inspect(self) -> DatasetContent:
        """Return the texts for ``emollama check-data``, for which all captions are read."""
        numbers = [self._number(index) for index in range(len(self))]
        answers = {self.tars.name(number): self.process_answer(self.tars.caption(number)) for number in numbers}
        return DatasetContent(
            listed=[self.tars.name(number) for number in range(len(self.tars))],
            answers={CAPTION_TASK: answers},
            exclude_key=f"{self.block_path}.exclude",
        )

    def problems(self) -> list[Problem]:
        """Return the samples whose image or caption is missing or unreadable."""
        if self.cfg.missing_images == "skip":
            return []
        problems = first_of_each_kind(self.tars.path, self._unusable)
        return [dataclasses.replace(problem, text=f"{self.block_path}: {problem.text}. {REMEDY}") for problem in problems]

    def _read_image(self, number: int) -> tuple[dict[str, Tensor], str | None]:
        """Return cached features and None, or the pixels and the key under which the model caches the features."""
        try:
            image = self.tars.image(number)
            return self._image_features(
                lambda: FeatureCache.content_key(image), lambda: {PIXELS: torch.from_numpy(self.tars.pixels(image))}
            )
        except (OSError, UnusableMedia) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            name = self.tars.name(number)
            raise UserError(f"{self.block_path}: {self.tars.location(name)}: cannot be read: {reason}. {REMEDY}") from None

    def _number(self, index: int) -> int:
        """Return the number that a sample of the dataset has in the tars."""
        return index if self._selected is None else int(self._selected[index])

    def _select(self) -> np.ndarray | None:
        """Return the (n,) int64 numbers of the samples that the block uses; None for all usable samples of the tars."""
        if not self.cfg.exclude and not self.cfg.held_out:
            return None
        names = [self.tars.name(number) for number in range(len(self.tars))]
        all_names = {*names, *(problem.clips[0] for problem in self.tars.problems())}
        if unlisted := [name for name in self.cfg.exclude if name not in all_names]:
            text = f"{self.block_path}.exclude contains {listing(unlisted, 'sample')}"
            raise UserError(f"{text}, which {self.tars.path} does not have. Correct the names.")
        included = [number for number, name in enumerate(names) if self._is_included(name)]
        selected = [number for number in included if self._is_selected(names[number])]
        if included and not selected:
            raise self._nothing_selected(len(included))
        return np.array(selected, np.int64)

"""What the datasets of images with captions share: the only task is ``caption``, and a record is an image with its captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, zeros

from emollama.data.slots import SlotShape, declared_slots, feature_cache
from emollama.data.text_processors import TEXT_PROCESSORS
from emollama.datasets.clip_texts import name_fraction
from emollama.datasets.configs import CaptionConfig
from emollama.errors import UserError


class CaptionDataset:
    """The part of a dataset of images with captions that does not depend on where they are.

    Args:
        cfg: the dataset's block of the configuration.
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the config block, such as ``datasets.merr``, for messages.
        training: False for evaluation.
        source: where the images are, as tables show it.

    Attributes:
        slot_sources: slot -> source of its features; None for all slots but the image's.
        notes: lines for the log.
    """

    cfg: CaptionConfig

    def __init__(
        self, cfg: CaptionConfig, slot_shapes: Mapping[str, SlotShape], *, block_path: str, training: bool, source: str
    ) -> None:
        self.cfg = cfg
        self.block_path = block_path
        self.training = training
        self.pool = cfg.pool()
        self.notes: list[str] = []
        self._excluded = set(cfg.exclude)
        self._absent = {slot: zeros(0, shape.dim) for slot, shape in slot_shapes.items()}
        self._cache = feature_cache(slot_shapes["image"])
        # An image has no other features.
        self.slot_sources = dict.fromkeys(declared_slots(slot_shapes)) | {"image": source}

    def user_text(self, index: int, task: str | None, instruction: str) -> str:
        """Return the user text, which is the instruction."""
        return instruction

    def process_answer(self, text: str) -> str:
        """Apply the text processor of training to an answer."""
        return TEXT_PROCESSORS[self.cfg.text_processor](text, self.cfg.max_words)

    def _image_features(
        self, key: Callable[[], str], read_pixels: Callable[[], Mapping[str, Tensor]]
    ) -> tuple[dict[str, Tensor], str | None]:
        """Return cached features of an image and None, or its pixels and the key under which the model caches the features.

        Args:
            key: returns the image's key in the cache; it is only called if features are cached.
            read_pixels: returns the image's pixels by slot.
        """
        cache_key = None
        if self._cache is not None:
            cache_key = key()
            if (cached := self._cache.read(cache_key)) is not None:
                return self._absent | {"image": torch.from_numpy(cached)}, None
        return self._absent | dict(read_pixels()), cache_key

    def _is_included(self, name: str) -> bool:
        """Return whether the block does not exclude the sample."""
        return name not in self._excluded

    def _is_selected(self, name: str) -> bool:
        """Return whether an included sample is in the part that ``held_out`` leaves to training or to evaluation."""
        return not self.cfg.held_out or (name_fraction(name) < self.cfg.held_out) != self.training

    def _nothing_selected(self, included: int) -> UserError:
        """Return the error for a ``held_out`` that leaves no image; ``included`` is the number without it."""
        use, size = ("training", "smaller") if self.training else ("evaluation", "larger")
        text = f"{self.cfg.held_out} leaves no images for {use} ({included} in total); use a {size} value"
        return UserError(f"{self.block_path}.held_out: {text}")

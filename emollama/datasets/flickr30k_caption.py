"""Flickr30k and whatever has its form: images with several captions each, of which a model learns to say one or all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, zeros

from emollama.data.annotations import missing_names
from emollama.data.batch import Record
from emollama.data.captions import Captioned, read_captioned
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.slots import FRAME, CachedShape, SlotShape
from emollama.data.text_processors import TEXT_PROCESSORS
from emollama.datasets.configs import Flickr30kCaptionConfig
from emollama.datasets.feature_clips import place_by_name
from emollama.datasets.image_files import open_images
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.media.image_files import ENDINGS, image_files
from emollama.paths import join
from emollama.stores.feature_cache import FeatureCache


class Flickr30kCaption:
    """The dataset behind a ``flickr30k_caption`` block. Its one task is ``caption``.

    Args:
        cfg: the block.
        slot_shapes: slot -> what the model expects of it.
        label: the block's label, for messages.
        training: False for evaluation, where images without captions are answered and not scored.

    Attributes:
        listed: how many images the caption file has.
        images: those that take part.
        features: the images' pixels.
        notes: lines for the log.

    Raises:
        UserError: a file or folder that is missing or unreadable; what is wrong with single images is told by :meth:`problems`.
    """

    Config = Flickr30kCaptionConfig

    cfg: Flickr30kCaptionConfig

    def __init__(
        self, cfg: Flickr30kCaptionConfig, *, slot_shapes: Mapping[str, SlotShape], label: str, training: bool = True
    ) -> None:
        self.cfg = cfg
        self.label = label
        self.training = training
        self.pool = cfg.pool()
        self.notes: list[str] = []
        self._found: list[Problem] = []
        listed = read_captioned(self.list_path(), self._found.append)
        self.listed = len(listed)
        self.images = self._chosen(listed)
        folder, key = join(cfg.data_root, cfg.image_path), f"{label}.image_path"
        present = image_files(folder, [image.file for image in self.images], key)
        files = {image.name: present[image.file] for image in self.images if image.file in present}
        self.features = [open_images(folder, files, slot_shapes.get(FRAME), key)]
        if cfg.missing_images == "skip":
            self._skip_missing()
        self._silent = [image.name for image in self.images if not image.captions]
        if self._silent and not training:
            self.notes.append(f"{label}: images without captions are answered and not scored, {listing(self._silent)}")
        self._absent = {slot: zeros(0, shape.width) for slot, shape in slot_shapes.items()}
        kept = slot_shapes["image"]
        self._kept = FeatureCache(kept.cache_folder, kept) if isinstance(kept, CachedShape) else None

    def list_path(self) -> str:
        """The caption file, seen from the current directory."""
        return join(self.cfg.data_root, self.cfg.annotation_file)

    def __len__(self) -> int:
        return len(self.images)

    def names(self) -> list[str]:
        """The images' names in order."""
        return [image.name for image in self.images]

    def digest(self) -> str:
        """Of the names and captions, in order."""
        rows = [[image.name, image.joined, *image.captions] for image in self.images]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def sampling(self) -> DatasetSampling:
        """How the images are drawn: freely, or in file order."""
        return DatasetSampling(len(self), self.cfg.sample_ratio, self.cfg.shuffle)

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Image ``index`` asked for a caption with this instruction: its pixels, or the rows that the model made of them before.

        ``rng``, the draw's generator, draws one of its captions where they are learnt at random. Answer and reference are None
        where it has none.
        """
        image = self.images[index]
        features, cache_key = self._rows(image)
        answer = self.as_answer(self._learnt(image, rng)) if image.captions else None
        turn = (self.user_text(index, task, instruction), answer)
        return Record(image.name, task, [turn], self._absent | features, list(image.captions) or None, cache_key)

    def user_text(self, index: int, task: str, instruction: str) -> str:
        """What the user says: the instruction."""
        return instruction

    def as_answer(self, text: str) -> str:
        """A text as it is trained on where it is an answer."""
        return TEXT_PROCESSORS[self.cfg.text_processor](text, self.cfg.max_words)

    def has_reference(self, task: str) -> bool:
        """Whether any image has a caption."""
        return any(image.captions for image in self.images)

    def problems(self) -> list[Problem]:
        """Everything that would stop the run later: faulty entries, missing and unreadable images, in training no caption."""
        found, names = list(self._found), self.names()
        if self._silent and self.training:
            told = listing(self._silent)
            text = f"{self.list_path()}: no caption of images {told}. Add them, or leave the images out (exclude)."
            found.append(Problem("caption", text, tuple(self._silent)))
        (source,) = self.features
        missing = missing_names(names, source)
        if missing:
            told = listing(missing) if len(missing) < len(names) else f"{len(names)}, which is all, such as '{names[0]}'"
            text = f"{source.key} ({source.path}): no file of images {told} (endings: {' '.join(ENDINGS)})."
            remedy = "Add them, leave them out (exclude), or set missing_images: skip."
            found.append(Problem("missing features", f"{text} {remedy}", tuple(missing)))
        found += source.problems(names)
        return [dataclasses.replace(problem, text=f"{self.label}: {problem.text}") for problem in found]

    def _learnt(self, image: Captioned, rng: np.random.Generator | None) -> str:
        if self.cfg.captions == "joined":
            return image.joined
        if self.cfg.captions == "first" or rng is None:
            return image.captions[0]
        return image.captions[int(rng.integers(len(image.captions)))]

    def _rows(self, image: Captioned) -> tuple[dict[str, Tensor], str | None]:
        """What is there of the image by slot, and where the model is to keep what it makes of its pixels."""
        (source,) = self.features
        if image.name not in source:
            raise UserError(f"{source.key}: no file of '{image.name}' in {source.path}; it was there at the start of the run")
        if self._kept is None:
            return source.read(image.name), None
        path = source.store.place(image.name)
        try:
            place = self._kept.place(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; it was there at the start of the run") from None
        rows = self._kept.read(place)
        return (source.read(image.name), place) if rows is None else ({"image": torch.from_numpy(rows)}, None)

    def _chosen(self, listed: list[Captioned]) -> list[Captioned]:
        """The images that take part, whether they are there or not."""
        strange = missing_names(self.cfg.exclude, {image.name for image in listed})
        if strange:
            raise UserError(f"{self.label}.exclude names images that {self.list_path()} does not list, {listing(strange)}")
        kept = [image for image in listed if image.name not in set(self.cfg.exclude)]
        if not kept:
            raise UserError(f"{self.list_path()}: exclude leaves no image of {len(listed)}")
        if not self.cfg.held_out:
            return kept
        chosen = [image for image in kept if (place_by_name(image.name) < self.cfg.held_out) != self.training]
        if not chosen:
            side = "to train on" if self.training else "to answer"
            raise UserError(f"{self.label}.held_out: {self.cfg.held_out} of {len(kept)} images leaves none {side}. Change it.")
        return chosen

    def _skip_missing(self) -> None:
        """Leave out the images that are missing or cannot be read."""
        names, (source,) = self.names(), self.features
        missing = missing_names(names, source)
        unusable = [name for problem in source.problems(names) for name in problem.clips]
        dropped = {*missing, *unusable}
        self.images = [image for image in self.images if image.name not in dropped]
        if not self.images:
            raise UserError(f"{source.key}: missing_images: skip leaves no image; none of {len(names)} is in {source.path}")
        if dropped:
            text = f"{source.key}: {len(missing)} images have no file, {len(unusable)} cannot be read (missing_images: skip)"
            self.notes.append(f"{text}: {abbreviated(sorted(dropped))}")

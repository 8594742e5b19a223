"""Flickr30k and other images with captions, of which a model learns one or all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from emollama.data.batch import Record
from emollama.data.captions import CaptionedImage, read_captioned_images
from emollama.data.dataset import DatasetContent
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.slots import PIXELS, SlotShape
from emollama.data.text_columns import missing_names
from emollama.datasets.caption_dataset import CaptionDataset
from emollama.datasets.configs import CAPTION_TASK, Flickr30kCaptionConfig
from emollama.datasets.image_files import ImageFiles, image_features, image_side
from emollama.datasets.new_images import AcceptsNewImages
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.media.image_files import EXTENSIONS, image_files
from emollama.paths import join
from emollama.stores.feature_cache import FeatureCache


class Flickr30kCaption(AcceptsNewImages, CaptionDataset):
    """The dataset of a ``flickr30k_caption`` block. Its only task is ``caption``.

    Args:
        cfg: the dataset's block of the configuration.
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the config block, such as ``datasets.merr``, for messages.
        training: False for evaluation, in which images without captions are answered and not scored.

    Attributes:
        listed: names of the images in the caption file.
        images: the selected images.
        features: the pixels of the images.
        slot_sources: slot -> source of its features; None for all slots but the image's.
        notes: lines for the log.

    Raises:
        UserError: If a file or folder is missing or unreadable. Problems of single images are returned by :meth:`problems`.
    """

    Config = Flickr30kCaptionConfig

    cfg: Flickr30kCaptionConfig

    def __init__(
        self, cfg: Flickr30kCaptionConfig, *, slot_shapes: Mapping[str, SlotShape], block_path: str, training: bool = True
    ) -> None:
        folder, key = join(cfg.data_root, cfg.image_path), f"{block_path}.image_path"
        super().__init__(cfg, slot_shapes, block_path=block_path, training=training, source=folder)
        self._reported: list[Problem] = []
        listed = read_captioned_images(self.list_path(), self._reported.append, f"{block_path}.annotation_file")
        self.listed = [image.name for image in listed]
        self.images = self._select(listed)
        present = image_files(folder, [image.file for image in self.images], key)
        files = {image.name: present[image.file] for image in self.images if image.file in present}
        side = image_side(slot_shapes.get(PIXELS), key)
        self.features = [image_features(ImageFiles(folder, files, side), folder, side, key)]
        if cfg.missing_images == "skip":
            self._skip_missing()
        self._uncaptioned = [image.name for image in self.images if not image.captions]
        if self._uncaptioned and not training:
            self.notes.append(
                f"{block_path}: images without captions get predictions, but no scores ({listing(self._uncaptioned, 'image')})"
            )

    def list_path(self) -> str:
        """Return the path of the caption file, relative to the current directory."""
        return join(self.cfg.data_root, self.cfg.annotation_file)

    def __len__(self) -> int:
        return len(self.images)

    def names(self) -> list[str]:
        """Return the names of the images in order."""
        return [image.name for image in self.images]

    def digest(self) -> str:
        """Return a hash of the names and captions, in order."""
        texts = [[image.name, image.joined, *image.captions] for image in self.images]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def sampling(self) -> DatasetSampling:
        """Return how training draws the images: shuffled, or in file order."""
        return DatasetSampling(len(self), self.cfg.sample_ratio, self.cfg.shuffle)

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Return image ``index`` with an instruction: its pixels, or the features that the model has cached for it.

        In training, ``rng`` is the sample's generator, with which a random caption is drawn. Answer and reference are None if the
        image has no captions.
        """
        image = self.images[index]
        features, cache_key = self._read_features(image)
        answer = self.process_answer(self._target(image, rng)) if image.captions else None
        turn = (self.user_text(index, task, instruction), answer)
        return Record(image.name, task, [turn], features, list(image.captions) or None, cache_key)

    def has_reference(self, task: str) -> bool:
        """Return whether any image has a caption."""
        return any(image.captions for image in self.images)

    def inspect(self) -> DatasetContent:
        """Return the texts for ``emollama check-data``. ``notes`` of the dataset lists the images without captions."""
        captioned = [image for image in self.images if image.captions]
        return DatasetContent(
            listed=self.listed,
            answers={CAPTION_TASK: {image.name: self._longest_target(image) for image in captioned}},
            list_file=self.list_path(),
            exclude_key=f"{self.block_path}.exclude",
            notes=list(self._caption_notes(captioned)),
        )

    def _longest_target(self, image: CaptionedImage) -> str:
        """Return the longest text in characters that the model is trained to produce for an image with captions."""
        targets = {"joined": (image.joined,), "random": image.captions, "first": image.captions[:1]}[self.cfg.captions]
        return max(map(self.process_answer, targets), key=len)

    def _caption_notes(self, captioned: list[CaptionedImage]) -> Iterator[Problem]:
        """Yield notes about images with an unusual number of captions and images that share captions."""
        counts = {image.name: len(image.captions) for image in captioned}
        usual, _ = Counter(counts.values()).most_common(1)[0] if counts else (0, 0)
        if usual == 1 and not self.training:
            text = "most images have a single caption, so answers are compared with that caption only"
            yield Problem("captions", f"{self.list_path()}: {text}")
        other = {name: count for name, count in counts.items() if count != usual}
        if other:
            text = f"{self.list_path()}: most images have {usual} captions, but these have another number"
            yield Problem("captions", text, tuple(other), tuple(f"{name} ({count})" for name, count in other.items()))
        owners = Counter(image.joined for image in captioned)
        if repeated := tuple(image.name for image in captioned if owners[image.joined] > 1):
            text = f"{self.list_path()}: these images have exactly the same captions as another image"
            yield Problem("repeated caption", text, repeated)

    def problems(self) -> list[Problem]:
        """Return everything that would stop the run later: invalid entries, missing or unreadable images, missing captions."""
        problems, names = list(self._reported), self.names()
        if self._uncaptioned and self.training:
            text = (
                f"{self.list_path()}: no captions for {listing(self._uncaptioned, 'image')}. Add captions, or exclude the images."
            )
            problems.append(Problem("caption", text, tuple(self._uncaptioned)))
        (source,) = self.features
        missing = missing_names(names, source)
        if missing:
            which = listing(missing, "image") if len(missing) < len(names) else f"all {len(names)} images, such as '{names[0]}'"
            text = f"{source.key} ({source.path}): no file for {which}; accepted extensions: {' '.join(EXTENSIONS)}."
            remedy = "Add the files, exclude the images, or set missing_images: skip."
            problems.append(Problem("missing features", f"{text} {remedy}", tuple(missing)))
        problems += source.problems(names)
        return [dataclasses.replace(problem, text=f"{self.block_path}: {problem.text}") for problem in problems]

    def _target(self, image: CaptionedImage, rng: np.random.Generator | None) -> str:
        if self.cfg.captions == "joined":
            return image.joined
        if self.cfg.captions == "first" or rng is None:
            return image.captions[0]
        return image.captions[int(rng.integers(len(image.captions)))]

    def _read_features(self, image: CaptionedImage) -> tuple[dict[str, Tensor], str | None]:
        """Return cached features and None, or the pixels and the key under which the model caches the features."""
        (source,) = self.features
        if image.name not in source:
            raise UserError(f"{source.key}: no file of '{image.name}' in {source.path}; it existed at the start of the run")
        path = source.store.location(image.name)

        def key() -> str:
            try:
                return FeatureCache.cache_key(path)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; the file existed at the start of the run") from None

        return self._image_features(key, lambda: source.read(image.name))

    def _select(self, listed: list[CaptionedImage]) -> list[CaptionedImage]:
        """Return the images that the block includes, whether their files exist or not."""
        unlisted = missing_names(self.cfg.exclude, {image.name for image in listed})
        if unlisted:
            raise UserError(
                f"{self.block_path}.exclude contains {listing(unlisted, 'image')}. {self.list_path()} does not list them"
            )
        included = [image for image in listed if self._is_included(image.name)]
        if not included:
            raise UserError(f"{self.list_path()}: exclude removes all images ({len(listed)} in total)")
        selected = [image for image in included if self._is_selected(image.name)]
        if not selected:
            raise self._nothing_selected(len(included))
        return selected

    def _skip_missing(self) -> None:
        """Leave out the images that are missing or cannot be read."""
        names, (source,) = self.names(), self.features
        missing = missing_names(names, source)
        unusable = [name for problem in source.problems(names) for name in problem.clips]
        dropped = {*missing, *unusable}
        self.images = [image for image in self.images if image.name not in dropped]
        if not self.images:
            raise UserError(
                f"{source.key}: missing_images: skip leaves no images, because none of {len(names)} is in {source.path}"
            )
        if dropped:
            text = f"{source.key}: {len(missing)} images have no file, {len(unusable)} cannot be read (missing_images: skip)"
            self.notes.append(f"{text}: {abbreviated(sorted(dropped))}")

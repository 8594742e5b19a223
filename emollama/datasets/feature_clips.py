"""The base class of the emotion datasets: clips with texts and pre-extracted features.

The texts and feature arrays of a clip become a ``Record``. Subclasses only read the texts (:meth:`ClipTexts.read_table`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import zeros

from emollama.data.annotations import Clip, Table
from emollama.data.batch import Record
from emollama.data.curriculum import column_values
from emollama.data.dataset import ClipsToPredict
from emollama.data.features import Features
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.shard_properties import cache_note, skipped_members
from emollama.data.slots import PIXELS, SlotShape, declared_slots
from emollama.datasets.clip_features import open_features, slot_sources
from emollama.datasets.clip_texts import ClipTexts
from emollama.errors import UserError
from emollama.listing import listing
from emollama.stores.conversion import other_file
from emollama.stores.store import NpyFolder
from emollama.stores.streamed_tars import StreamedTarStore, is_streamed

# Keys that select clips or decide what happens to missing features, set so that no clip is left out.
ALL_CLIPS: dict[str, Any] = {
    "exclude": [],
    "exclude_labels": [],
    "held_out": 0.0,
    "curriculum": {},
    "missing_features": "zero",
}


class FeatureClips(ClipTexts):
    """Base class of a dataset of clips, which adds features to their texts.

    Args:
        cfg: the dataset's block of the configuration.
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the config block, such as ``datasets.merr``, for messages.
        training: False for evaluation, in which a missing reference answer is None and not a problem.
        table: the texts, in place of those of the annotation files.

    Attributes:
        features: the features of each configured store.
        slot_sources: slot -> path of its features, None if the clips have none; slots that ``features`` does not mention are
            not included, unless they get zeros.

    Raises:
        UserError: If a file is missing or unreadable. Problems of single clips are returned by :meth:`problems`.
    """

    def __init__(
        self,
        cfg: Any,
        *,
        slot_shapes: Mapping[str, SlotShape],
        block_path: str,
        training: bool = True,
        table: Table | None = None,
    ) -> None:
        super().__init__(cfg, block_path=block_path, training=training, table=table)
        if training and cfg.reads_frames and cfg.enable_augmentation and "mask_rows" in cfg.augmentations:
            text = f"{block_path}.augmentations: mask_rows cannot mask features that the model computes from frames"
            raise UserError(f"{text} (features.image: null). Remove it from the list, or extract EVA features.")
        self.features = open_features(cfg, slot_shapes, block_path, self.resolve_path)
        self.slot_sources = slot_sources(cfg, slot_shapes)
        groups = declared_slots(slot_shapes)
        self._augmentation = cfg.augmentation(list(groups.values()))
        self._zeros = {slot: zeros(shape.num_zeros, shape.dim) for slot, shape in slot_shapes.items()}
        self._absent = {slot: zeros(0, shape.dim) for slot, shape in slot_shapes.items()}
        # With missing_features: zero, slots that the block does not mention get zeros, too.
        zero_slots = [slot for slot in self.slot_sources if slot not in cfg.features]
        self._absent |= {slot: self._zeros[slot] for name in zero_slots for slot in groups[name]}
        if skipped := skipped_members(self.features):
            self.notes.append(f"{block_path}.features: {skipped}")
        if note := cache_note(self.features, cfg.shuffle_window):
            self.notes.append(f"{block_path}.stream: {note}")
        self.notes += self._apply_missing_policy()
        self._difficulty = self._compute_difficulty()

    @classmethod
    def clip_slots(cls, cfg: Any) -> set[str]:
        """Return the slots that a block has features for, and "frame" if the model encodes frames of the block's videos."""
        return {slot for slot, path in cfg.features.items() if path is not None} | ({PIXELS} if cfg.reads_frames else set())

    @classmethod
    def has_sentences(cls, cfg: Any, *, block_path: str) -> bool:
        """Return whether prompts contain spoken sentences, from a transcript file or from the annotation file.

        Raises:
            UserError: If the annotation file has to be read and cannot be read.
        """
        if cfg.transcription_path is not None:
            return True
        texts_only = cfg.with_features({}, image_path=None, **ALL_CLIPS)
        return cls(texts_only, slot_shapes={}, block_path=block_path, training=False).table.sentences is not None

    @classmethod
    def for_clips(cls, cfg: Any, clips: ClipsToPredict, *, slot_shapes: Mapping[str, SlotShape], block_path: str) -> Self:
        """Build a dataset for evaluation whose samples are new clips, with the prompts and features of the block."""
        sentences = None if clips.sentence is None else dict.fromkeys(clips.names, clips.sentence)
        table = Table([Clip(name, "", number) for number, name in enumerate(clips.names, 1)], sentences)
        pixels = clips.features.get(PIXELS) if PIXELS in cls.clip_slots(cfg) else None
        folders = {slot: folder for slot, folder in clips.features.items() if slot != PIXELS}
        changes = {"task_pool": clips.task, "transcription_path": None, "image_path": pixels, **ALL_CLIPS}
        new_cfg = cfg.with_features(folders, **changes)
        if cfg.missing_features != "zero":
            # Only arrays that could not be computed become zeros. Slots that the block does not mention stay empty.
            new_cfg.features = dict.fromkeys(declared_slots(slot_shapes)) | new_cfg.features
        dataset = cls(new_cfg, slot_shapes=slot_shapes, block_path=block_path, training=False, table=table)
        if pixels is not None:
            dataset.features = [_reading_arrays(source, pixels) for source in dataset.features]
        # Notes count missing arrays, which an answer reports for its clip.
        dataset.notes.clear()
        return dataset

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Return clip ``index`` with an instruction of a task; the answer is None if there is no reference answer.

        In training, ``rng`` is the sample's generator, with which the features are augmented.
        """
        return self.records(index, [(task, instruction)], rng)[0]

    def records(self, index: int, questions: Sequence[tuple[str, str]], rng: np.random.Generator | None = None) -> list[Record]:
        """Return a record of clip ``index`` for each (task, instruction). Its features are read and augmented once."""
        clip = self.clips[index]
        features = dict(self._absent)
        for source in self.features:
            if clip.name in source:
                features |= source.read(clip.name)
            elif self.cfg.missing_features == "zero":
                features |= {slot: self._zeros[slot] for slot in source.filled_slots}
            else:
                raise UserError(f"{source.key}: no array of '{clip.name}' in {source.path}; it existed at the start of the run")
        if rng is not None and self._augmentation is not None:
            features = self._augmentation(features, rng)
        turns = [(self.user_text(index, task, instruction), self.answer(clip, task)) for task, instruction in questions]
        return [
            Record(clip.name, task, [turn], features, self.reference(clip, task))
            for (task, _), turn in zip(questions, turns, strict=True)
        ]

    @property
    def is_streamed(self) -> bool:
        """Whether features are read from a server when they are needed."""
        return any(is_streamed(source.store) for source in self.features)

    def read_ahead(self, index: int) -> None:
        """Start to read the features of clip ``index`` that are streamed."""
        for source in self.features:
            if isinstance(source.store, StreamedTarStore):
                source.store.read_ahead(self.clips[index].name)

    def problems(self) -> list[Problem]:
        """Return everything that would stop the run later: invalid rows, missing texts and arrays, unusable arrays.

        The arrays of all clips are checked; by default, the values of small ones only.
        """
        problems = [*self._reported, *self._missing_texts()]
        names = self.names()
        for source in self.features:
            missing = source.missing(names)
            if missing and self.cfg.missing_features == "error":
                what = "video (or peak)" if source.slots == (PIXELS,) else "array"
                text = f"no {what} in {source.key} ({source.path}) for {listing(missing, 'clip')}. Remedy: add them, or set"
                text += f" missing_features: zero or skip.{other_file(source.path, missing[0])}"
                problems.append(Problem("missing features", text, tuple(missing)))
            problems += source.problems(names)
        return [dataclasses.replace(problem, text=f"{self.block_path}: {problem.text}") for problem in problems]

    def sampling(self) -> DatasetSampling:
        """Return how training draws the clips: by shard if the store reads faster this way, easy ones first in a curriculum."""
        cfg, curriculum = self.cfg, self.cfg.curriculum_schedule()
        shard_ids = (source.shard_ids(self.names()) for source in self.features)
        shards = next((ids for ids in shard_ids if ids is not None), None)
        phases = curriculum.epochs if curriculum and self._difficulty is not None else 1
        return DatasetSampling(len(self), cfg.sample_ratio, cfg.shuffle, shards, cfg.shuffle_window, self._difficulty, phases)

    def _compute_difficulty(self) -> np.ndarray | None:
        """Return the (len(self),) float64 difficulty of the clips, ascending; None without a valid curriculum."""
        curriculum = self.cfg.curriculum_schedule() if self.training else None
        if curriculum is None:
            return None
        try:
            values = self._values(curriculum.by)
        except UserError as error:
            self.report(Problem("list", str(error)))
            return None
        if len(np.unique(values)) == 1:
            text = f"all clips have the same {curriculum.by}, so each of its epochs draws a random part of the clips"
            self.notes.append(f"{self.block_path}.curriculum: {text}")
        return np.array(values) * (-1.0 if curriculum.descending else 1.0)

    def _values(self, by: str) -> list[float]:
        if by == "modalities":
            return [sum(clip.name not in source for source in self.features) for clip in self.clips]
        if by == "answer_length":
            return [max(len((self.answer(clip, task) or "").split()) for task in self.pool.tasks) for clip in self.clips]
        return column_values(self.clips, by, "curriculum.by", self.list_path())

    def _apply_missing_policy(self) -> list[str]:
        """Apply ``missing_features``: drop clips, or count their missing arrays. Return lines for the log."""
        policy, count = self.cfg.missing_features, len(self.clips)
        if policy == "error":
            return []  # problems() reports missing arrays
        missing = {source.key: source.missing(self.names()) for source in self.features}
        if policy == "skip":
            dropped = {name for names in missing.values() for name in names}
            kept = np.array([name not in dropped for name in self.clips.names])
            self.clips = self.clips.at(self.clips.rows[kept])
            if not self.clips:
                raise UserError(f"{self.block_path}: missing_features: skip leaves no clips, because each lacks a feature array")
        note = f"of {count} clips have no array (missing_features: {policy})"
        return [f"{key}: {len(names)} {note}" for key, names in missing.items() if names]


def _reading_arrays(source: Features, folder: str) -> Features:
    """Return a source of frames that reads their pixels from arrays in a folder; other sources are returned unchanged."""
    if source.slots != (PIXELS,):
        return source
    return dataclasses.replace(source, store=NpyFolder.open(Path(folder)), path=folder)

"""The base class of the emotion datasets: clips with texts and pre-extracted features.

The texts and feature arrays of a clip become a ``Record``. Subclasses only read the texts (:meth:`FeatureClips.read_table`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import zeros

from emollama.data.annotations import Clip, Table, missing_names, read_transcripts
from emollama.data.batch import Record
from emollama.data.curriculum import column_values
from emollama.data.features import Features
from emollama.data.instructions import user_text
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.slots import IMAGE, PIXELS, SlotShape
from emollama.data.text_processors import TEXT_PROCESSORS
from emollama.datasets.frame_store import open_frames
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.paths import join
from emollama.registry import did_you_mean

SLOTS_BY_KEY = {  # configuration key -> the slots that its arrays fill
    "image_feature_path": IMAGE,
    "face_feature_path": ("face",),
    "video_feature_path": ("video",),
    "audio_feature_path": ("audio",),
}


class FeatureClips:
    """Base class of a dataset of clips.

    Args:
        cfg: the dataset's block of the configuration.
        slot_shapes: slot -> the shape that the model expects.
        block_path: path of the config block, such as ``datasets.merr``, for messages.
        training: False for evaluation, in which a missing reference answer is None and not a problem.

    Attributes:
        table: all texts of the annotation files.
        clips: the selected rows of the table, with mapped labels.
        features: the features of each configured store.
        notes: lines for the log.

    Raises:
        UserError: If a file is missing or unreadable. Problems of single clips are returned by :meth:`problems`.
    """

    def __init__(self, cfg: Any, *, slot_shapes: Mapping[str, SlotShape], block_path: str, training: bool = True) -> None:
        self.cfg = cfg
        self.block_path = block_path
        self.training = training
        self.pool = cfg.pool()
        self._augmentation = cfg.augmentation()
        self._reported: list[Problem] = []
        self.notes: list[str] = []
        self.table = self.read_table()
        if cfg.transcription_path is not None:
            self.table = dataclasses.replace(self.table, sentences=self._transcripts())
        self.clips = self._select_clips()
        folders = {key: path for key in SLOTS_BY_KEY if (path := getattr(cfg, key)) is not None}
        if unknown := {slot: key for key in folders for slot in SLOTS_BY_KEY[key] if slot not in slot_shapes}:
            text = f"{block_path}: the model has no slots for the features {', '.join(unknown)}; it has {', '.join(slot_shapes)}"
            keys = " and ".join(dict.fromkeys(f"{key}: null" for key in unknown.values()))
            raise UserError(f"{text}. Set {keys}; or model.arch: minigpt_v2. Use flickr30k_caption for images with captions.")
        self.features = [
            Features.open(self.resolve_path(path), SLOTS_BY_KEY[key], slot_shapes[SLOTS_BY_KEY[key][0]], f"{block_path}.{key}")
            for key, path in folders.items()
        ]
        if cfg.image_feature_path is None and cfg.image_path is not None:
            if training and cfg.enable_augmentation and "mask_rows" in cfg.augmentations:
                text = f"{block_path}.augmentations: mask_rows cannot mask features that the model computes from frames"
                raise UserError(f"{text} (image_feature_path: null). Remove it from the list, or extract EVA features.")
            peaks = None if cfg.peak_index_path is None else self.resolve_path(cfg.peak_index_path)
            folder = join(cfg.data_root, cfg.image_path)
            self.features.append(open_frames(folder, slot_shapes.get(PIXELS), block_path, cfg.frame_selection, peaks))
        self._zeros = {slot: zeros(shape.num_vectors, shape.dim) for slot, shape in slot_shapes.items()}
        self._absent = {slot: zeros(0, shape.dim) for slot, shape in slot_shapes.items()}
        self.notes += self._apply_missing_policy()
        self._difficulty = self._compute_difficulty()

    def read_table(self) -> Table:
        """Read the annotation file and the captions; passes problems of single rows to :meth:`report`."""
        raise NotImplementedError

    def _transcripts(self) -> dict[str, str] | None:
        try:
            return read_transcripts(self.resolve_path(self.cfg.transcription_path), self.report)
        except UserError as error:
            self.report(Problem("transcript", str(error)))
            return None

    @property
    def list_key(self) -> str:
        """The configuration key of the annotation file, for messages."""
        return f"{self.block_path}.annotation_file"

    def list_path(self) -> str:
        """Return the path of the annotation file, relative to the current directory."""
        return join(self.cfg.data_root, self.cfg.annotation_file)

    def resolve_path(self, path: str) -> str:
        """Resolve a path that is relative to the folder of the annotation file."""
        return join(os.path.dirname(self.list_path()), path)

    def caption_source(self, task: str) -> str:
        """Return where the answers of a task are read from, for messages."""
        return self.list_path()

    def report(self, problem: Problem) -> None:
        """Store a problem for :meth:`problems`."""
        self._reported.append(problem)

    def __len__(self) -> int:
        return len(self.clips)

    def digest(self) -> str:
        """Return a hash of the prompts and targets: names, sentences and answers to the pool's tasks, in order."""
        sentences, tasks = self.table.sentences or {}, self.pool.tasks
        texts = [[clip.name, sentences.get(clip.name), *(self.answer(clip, task) for task in tasks)] for clip in self.clips]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def names(self) -> list[str]:
        """Return the names of the clips in order."""
        return [clip.name for clip in self.clips]

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Return clip ``index`` with an instruction of a task; the answer is None if there is no reference answer.

        In training, ``rng`` is the sample's generator, with which the features are augmented.
        """
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
        turn = (self.user_text(index, task, instruction), self.answer(clip, task))
        return Record(clip.name, task, [turn], features, self.reference(clip, task))

    def user_text(self, index: int, task: str, instruction: str) -> str:
        """Return the user text of clip ``index``: sentence, task and instruction."""
        sentence = None if self.table.sentences is None else self.table.sentences[self.clips[index].name]
        return user_text(task, instruction, sentence)

    def reference(self, clip: Clip, task: str) -> str | None:
        """Return the reference answer of the data, unprocessed; None if there is none."""
        return clip.label or None if task == "emotion" else self.table.captions.get(task, {}).get(clip.name)

    def answer(self, clip: Clip, task: str) -> str | None:
        """Return the target text of training for a task; None if there is none."""
        text = self.reference(clip, task)
        return None if text is None else self.process_answer(text)

    def process_answer(self, text: str) -> str:
        """Apply the text processor of training to an answer."""
        return TEXT_PROCESSORS[self.cfg.text_processor](text, self.cfg.max_words)

    def has_reference(self, task: str) -> bool:
        """Return whether any clip has a reference answer to a task."""
        return any(self.reference(clip, task) is not None for clip in self.clips)

    def problems(self) -> list[Problem]:
        """Return everything that would stop the run later: invalid rows, missing texts and arrays, unusable arrays.

        The arrays of all clips are checked; by default, the values of small ones only.
        """
        problems = [*self._reported, *self._missing_texts()]
        names = self.names()
        for source in self.features:
            missing = missing_names(names, source)
            if missing and self.cfg.missing_features == "error":
                what = "video (or peak)" if source.slots == (PIXELS,) else "array"
                text = f"no {what} in {source.key} ({source.path}) for {listing(missing, 'clip')}. Remedy: add them, or set"
                problems.append(Problem("missing features", f"{text} missing_features: zero or skip.", tuple(missing)))
            problems += source.problems(names, all_values=self.cfg.check_values == "all")
        return [dataclasses.replace(problem, text=f"{self.block_path}: {problem.text}") for problem in problems]

    def sampling(self) -> DatasetSampling:
        """Return how training draws the clips: by shard if the store reads faster this way, easy ones first in a curriculum."""
        cfg, curriculum = self.cfg, self.cfg.curriculum_schedule()
        shard_ids = (source.store.shard_ids(self.names()) for source in self.features)
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

    def _missing_texts(self) -> list[Problem]:
        names = self.names()
        problems = []
        for task in self.pool.tasks if self.training else ():
            missing = [] if task == "emotion" else missing_names(names, self.table.captions.get(task, {}))
            if missing:
                remedy = f"add them ({self.caption_source(task)}), or remove the clips from the list, or '{task}' from task_pool"
                text = f"no caption for task {task} for {listing(missing, 'clip')}. Remedy: {remedy}."
                problems.append(Problem("caption", text, tuple(missing)))
        missing = [] if self.table.sentences is None else missing_names(names, self.table.sentences)
        if missing:
            text = f"no row in {self.cfg.transcription_path} for {listing(missing, 'clip')}. Remedy: add the rows (an empty"
            text += " sentence means a clip without speech), or set transcription_path: null."
            problems.append(Problem("transcript", text, tuple(missing)))
        return problems

    def _select_clips(self) -> list[Clip]:
        cfg, excluded = self.cfg, set(self.cfg.exclude)
        clips = [dataclasses.replace(clip, label=cfg.label_map.get(clip.label, clip.label)) for clip in self.table.clips]
        if "emotion" in self.pool.tasks or cfg.exclude_labels:
            # Evaluation may include clips without a label. They are answered and not scored.
            labelled = [clip for clip in clips if clip.name not in excluded and (clip.label or self.training)]
            unknown = [clip for clip in labelled if clip.label not in cfg.labels and clip.label not in cfg.exclude_labels]
            if unknown:
                details = tuple(f"'{clip.label}' (line {clip.line}, {clip.name})" for clip in unknown)
                remedy = "Correct the list, labels or label_map; only a task_pool without 'emotion' allows a list without labels"
                text = f"{self.list_path()}: {listing(details, 'unknown label')}. Known: {abbreviated(cfg.labels)}. {remedy}."
                self.report(Problem("label", text, tuple(clip.name for clip in unknown), details))
        self._check_excluded_labels(list(dict.fromkeys(clip.label for clip in clips if clip.label)))
        unlisted = missing_names(cfg.exclude, {clip.name for clip in clips})
        if unlisted:
            names = listing(unlisted, "clip")
            raise UserError(f"{self.block_path}.exclude contains {names}. {self.list_path()} does not list them")
        included = [clip for clip in clips if clip.label not in cfg.exclude_labels and clip.name not in excluded]
        if not included:
            raise UserError(f"{self.list_path()}: exclude and exclude_labels remove all clips ({len(clips)} in total)")
        if not cfg.held_out:
            return included
        selected = [clip for clip in included if (name_fraction(clip.name) < cfg.held_out) != self.training]
        if not selected:
            use, size = ("training", "smaller") if self.training else ("evaluation", "larger")
            text = f"{cfg.held_out} leaves no clips for {use} ({len(included)} in total); use a {size} value"
            raise UserError(f"{self.block_path}.held_out: {text}")
        return selected

    def _check_excluded_labels(self, present: list[str]) -> None:
        """Report labels in ``exclude_labels`` that no clip has: as a problem if they are probably misspelled, else as a note."""
        for label in self.cfg.exclude_labels:
            if label in present:
                continue
            text = f"exclude_labels: no clip of {self.list_path()} has the label '{label}'."
            hint = "" if label in self.cfg.labels else did_you_mean(label, [*present, *self.cfg.labels])
            if hint:
                self.report(Problem("label", f"{text}{hint} Its labels: {abbreviated(present)}."))
            else:
                self.notes.append(f"{self.block_path}.{text}")

    def _apply_missing_policy(self) -> list[str]:
        """Apply ``missing_features``: drop clips, or count their missing arrays. Return lines for the log."""
        policy, count = self.cfg.missing_features, len(self.clips)
        if policy == "error":
            return []  # problems() reports missing arrays
        missing = {source.key: missing_names(self.names(), source) for source in self.features}
        if policy == "skip":
            dropped = {name for names in missing.values() for name in names}
            self.clips = [clip for clip in self.clips if clip.name not in dropped]
            if not self.clips:
                raise UserError(f"{self.block_path}: missing_features: skip leaves no clips, because each lacks a feature array")
        note = f"of {count} clips have no array (missing_features: {policy})"
        return [f"{key}: {len(names)} {note}" for key, names in missing.items() if names]


def name_fraction(name: str) -> float:
    """Map a name to a fixed number in [0, 1), so that lists with common samples hold out the same samples."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64

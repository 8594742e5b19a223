"""What the emotion datasets share: clips with texts and pre-extracted features.

One clip's way: its row of the list -> label and caption (the answer), transcript (the words), features by slot -> Record.
A dataset's own file says where its texts lie (:meth:`FeatureClips.read_table`); everything else is here.
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
from emollama.data.curriculum import numbers
from emollama.data.features import Features
from emollama.data.instructions import user_text
from emollama.data.problems import Problem
from emollama.data.sampling import DatasetSampling
from emollama.data.slots import FRAME, IMAGE, SlotShape
from emollama.data.text_processors import TEXT_PROCESSORS
from emollama.datasets.frame_store import open_frames
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.paths import join
from emollama.registry import did_you_mean

FOLDERS = {  # configuration key -> the slots that its arrays fill
    "image_feature_path": IMAGE,
    "face_feature_path": ("face",),
    "video_feature_path": ("video",),
    "audio_feature_path": ("audio",),
}


class FeatureClips:
    """The base of a dataset of clips.

    Args:
        cfg: the block.
        slot_shapes: slot -> what the model expects of it.
        label: the block's label, for messages.
        training: False for evaluation, which never needs a caption: an answer that is not there is None.

    Attributes:
        table: all texts, as read.
        clips: the rows of the table that take part, labels mapped.
        features: one for each configured folder.
        notes: lines for the log.

    Raises:
        UserError: files that are missing or unreadable; what is wrong with single clips is told by :meth:`problems`.
    """

    def __init__(self, cfg: Any, *, slot_shapes: Mapping[str, SlotShape], label: str, training: bool = True) -> None:
        self.cfg = cfg
        self.label = label
        self.training = training
        self.pool = cfg.pool()
        self._augmentation = cfg.augmentation()
        self._found: list[Problem] = []
        self.notes: list[str] = []
        self.table = self.read_table()
        if cfg.transcription_path is not None:
            self.table = dataclasses.replace(self.table, sentences=self._transcripts())
        self.clips = self._chosen_clips()
        folders = {key: path for key in FOLDERS if (path := getattr(cfg, key)) is not None}
        if strange := {slot: key for key in folders for slot in FOLDERS[key] if slot not in slot_shapes}:
            told = f"{label}: the model has no slots for {listing(list(strange))} rows of clips; it has {', '.join(slot_shapes)}"
            keys = " and ".join(dict.fromkeys(f"{key}: null" for key in strange.values()))
            raise UserError(f"{told}. Set {keys}; or model.arch: minigpt_v2. Images with captions are a flickr30k_caption block.")
        self.features = [
            Features.open(self.beside_list(path), FOLDERS[key], slot_shapes[FOLDERS[key][0]], f"{label}.{key}")
            for key, path in folders.items()
        ]
        if cfg.image_feature_path is None and cfg.image_path is not None:
            if training and cfg.enable_augmentation and "mask_rows" in cfg.augmentations:
                text = f"{label}.augmentations: mask_rows cannot mask the rows that the model makes of frames"
                raise UserError(f"{text} (image_feature_path: null). Take it out of the list, or extract the rows.")
            peaks = None if cfg.peak_index_path is None else self.beside_list(cfg.peak_index_path)
            folder = join(cfg.data_root, cfg.image_path)
            self.features.append(open_frames(folder, slot_shapes.get(FRAME), label, cfg.frame_selection, peaks))
        self._zeros = {slot: zeros(shape.rows, shape.width) for slot, shape in slot_shapes.items()}
        self._absent = {slot: zeros(0, shape.width) for slot, shape in slot_shapes.items()}
        self.notes += self._apply_missing_policy()
        self._difficulty = self._measured_difficulty()

    def read_table(self) -> Table:
        """Read the list and its captions; each dataset's own. Faults of single rows go to :meth:`report`."""
        raise NotImplementedError

    def _transcripts(self) -> dict[str, str] | None:
        try:
            return read_transcripts(self.beside_list(self.cfg.transcription_path), self.report)
        except UserError as error:
            self.report(Problem("transcript", str(error)))
            return None

    def list_path(self) -> str:
        """The annotation file, seen from the current directory."""
        return join(self.cfg.data_root, self.cfg.annotation_file)

    def beside_list(self, path: str) -> str:
        """A path that starts at the annotation file's folder."""
        return join(os.path.dirname(self.list_path()), path)

    def caption_source(self, task: str) -> str:
        """Where a task's answers are read from, for messages."""
        return self.list_path()

    def report(self, problem: Problem) -> None:
        """Keep what a reader found, for :meth:`problems`."""
        self._found.append(problem)

    def __len__(self) -> int:
        return len(self.clips)

    def digest(self) -> str:
        """Of what is asked and answered: names, labels, sentences, captions of the pool's tasks, in order."""
        said, tasks = self.table.sentences or {}, self.pool.tasks
        rows = [[clip.name, said.get(clip.name), *(self.answer(clip, task) for task in tasks)] for clip in self.clips]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def names(self) -> list[str]:
        """The clips' names in order."""
        return [clip.name for clip in self.clips]

    def record(self, index: int, task: str, instruction: str, rng: np.random.Generator | None = None) -> Record:
        """Clip ``index`` asked for ``task`` with this instruction; the answer is None where evaluation has none.

        With ``rng``, the draw's generator, features are augmented as the block says.
        """
        clip = self.clips[index]
        features = dict(self._absent)
        for source in self.features:
            if clip.name in source:
                features |= source.read(clip.name)
            elif self.cfg.missing_features == "zero":
                features |= {slot: self._zeros[slot] for slot in source.fills}
            else:
                raise UserError(f"{source.key}: no array of '{clip.name}' in {source.path}; it was there at the start of the run")
        if rng is not None and self._augmentation is not None:
            features = self._augmentation(features, rng)
        turn = (self.user_text(index, task, instruction), self.answer(clip, task))
        return Record(clip.name, task, [turn], features, self.reference(clip, task))

    def user_text(self, index: int, task: str, instruction: str) -> str:
        """What the user says about clip ``index``: the sentence, the task, the instruction."""
        sentence = None if self.table.sentences is None else self.table.sentences[self.clips[index].name]
        return user_text(task, instruction, sentence)

    def reference(self, clip: Clip, task: str) -> str | None:
        """The data's own answer to a task, unprocessed; None where there is none."""
        return clip.label or None if task == "emotion" else self.table.captions.get(task, {}).get(clip.name)

    def answer(self, clip: Clip, task: str) -> str | None:
        """What the clip's answer to a task is, as it is trained on; None where there is none."""
        text = self.reference(clip, task)
        return None if text is None else self.as_answer(text)

    def as_answer(self, text: str) -> str:
        """A text as it is trained on where it is an answer."""
        return TEXT_PROCESSORS[self.cfg.text_processor](text, self.cfg.max_words)

    def has_reference(self, task: str) -> bool:
        """Whether any clip's answer to a task is known."""
        return any(self.reference(clip, task) is not None for clip in self.clips)

    def problems(self) -> list[Problem]:
        """Everything that would stop the run later: faulty rows, what each clip lacks, and which features are unusable.

        Looks at every array of the clips; values are read where they are small.
        """
        found = [*self._found, *self._missing_texts()]
        names = self.names()
        for source in self.features:
            missing = missing_names(names, source)
            if missing and self.cfg.missing_features == "error":
                what = "video (or peak)" if source.slots == (FRAME,) else "array"
                text = f"no {what} in {source.key} ({source.path}) for clips {listing(missing)}. Remedy: add them, or set"
                found.append(Problem("missing features", f"{text} missing_features: zero or skip.", tuple(missing)))
            found += source.problems(names, all_values=self.cfg.check_values == "all")
        return [dataclasses.replace(problem, text=f"{self.label}: {problem.text}") for problem in found]

    def sampling(self) -> DatasetSampling:
        """How the clips are drawn: freely, by shard where a store is cheaper to read so, easy first in a curriculum."""
        cfg, curriculum = self.cfg, self.cfg.curriculum_schedule()
        groups = (source.store.groups(self.names()) for source in self.features)
        shards = next((found for found in groups if found is not None), None)
        phases = curriculum.epochs if curriculum and self._difficulty is not None else 1
        return DatasetSampling(len(self), cfg.sample_ratio, cfg.shuffle, shards, cfg.shuffle_window, self._difficulty, phases)

    def _measured_difficulty(self) -> np.ndarray | None:
        """(len(self),) float64, easy is small; None without a curriculum, or with one that :meth:`problems` refuses."""
        curriculum = self.cfg.curriculum_schedule() if self.training else None
        if curriculum is None:
            return None
        try:
            values = self._values(curriculum.by)
        except UserError as error:
            self.report(Problem("list", str(error)))
            return None
        if len(np.unique(values)) == 1:
            by = f"by {curriculum.by} all clips are equal"
            self.notes.append(f"{self.label}.curriculum: {by}; each of its epochs draws a random part of them")
        return np.array(values) * (-1.0 if curriculum.descending else 1.0)

    def _values(self, by: str) -> list[float]:
        if by == "modalities":
            return [sum(clip.name not in source for source in self.features) for clip in self.clips]
        if by == "answer_length":
            return [max(len((self.answer(clip, task) or "").split()) for task in self.pool.tasks) for clip in self.clips]
        return numbers(self.clips, by, "curriculum.by", self.list_path())

    def _missing_texts(self) -> list[Problem]:
        names = self.names()
        found = []
        for task in self.pool.tasks if self.training else ():
            missing = [] if task == "emotion" else missing_names(names, self.table.captions.get(task, {}))
            if missing:
                remedy = f"add them ({self.caption_source(task)}), or take the clips off the list, or '{task}' out of task_pool"
                text = f"no caption for task {task}, clips {listing(missing)}. Remedy: {remedy}."
                found.append(Problem("caption", text, tuple(missing)))
        missing = [] if self.table.sentences is None else missing_names(names, self.table.sentences)
        if missing:
            text = f"no row in {self.cfg.transcription_path} for clips {listing(missing)}. Remedy: add the rows (an empty"
            text += " sentence is a clip without speech), or set transcription_path: null."
            found.append(Problem("transcript", text, tuple(missing)))
        return found

    def _chosen_clips(self) -> list[Clip]:
        cfg, excluded = self.cfg, set(self.cfg.exclude)
        clips = [dataclasses.replace(clip, label=cfg.label_map.get(clip.label, clip.label)) for clip in self.table.clips]
        if "emotion" in self.pool.tasks or cfg.exclude_labels:
            counted = [clip for clip in clips if clip.name not in excluded and (clip.label or self.training)]
            unknown = [clip for clip in counted if clip.label not in cfg.labels and clip.label not in cfg.exclude_labels]
            if unknown:
                named = tuple(f"'{clip.label}' (line {clip.line}, {clip.name})" for clip in unknown)
                remedy = "correct the list, labels or label_map; only a task_pool without 'emotion' takes a list without labels"
                text = f"{self.list_path()}: unknown label (known: {abbreviated(cfg.labels)}; {remedy}), clips {listing(named)}"
                self.report(Problem("label", text, tuple(clip.name for clip in unknown), named))
        self._check_excluded_labels(list(dict.fromkeys(clip.label for clip in clips if clip.label)))
        strange = missing_names(cfg.exclude, {clip.name for clip in clips})
        if strange:
            raise UserError(f"{self.label}.exclude names clips that {self.list_path()} does not list, {listing(strange)}")
        kept = [clip for clip in clips if clip.label not in cfg.exclude_labels and clip.name not in excluded]
        if not kept:
            raise UserError(f"{self.list_path()}: exclude and exclude_labels leave no clip of {len(clips)}")
        if not cfg.held_out:
            return kept
        chosen = [clip for clip in kept if (place_by_name(clip.name) < cfg.held_out) != self.training]
        if not chosen:
            side = "to train on" if self.training else "to answer"
            raise UserError(f"{self.label}.held_out: {cfg.held_out} of {len(kept)} clips leaves none {side}. Change the share.")
        return chosen

    def _check_excluded_labels(self, present: list[str]) -> None:
        """Report labels of ``exclude_labels`` that no clip has: a problem if they are probably misspelled, else a note."""
        for label in self.cfg.exclude_labels:
            if label in present:
                continue
            text = f"exclude_labels: no clip of {self.list_path()} has the label '{label}'."
            hint = "" if label in self.cfg.labels else did_you_mean(label, [*present, *self.cfg.labels])
            if hint:
                self.report(Problem("label", f"{text}{hint} Labels there: {abbreviated(present)}."))
            else:
                self.notes.append(f"{self.label}.{text}")

    def _apply_missing_policy(self) -> list[str]:
        """Count what is missing and drop clips where the policy says so. Returns lines for the log."""
        policy, count = self.cfg.missing_features, len(self.clips)
        if policy == "error":
            return []  # problems() tells
        lacking = {source.key: missing_names(self.names(), source) for source in self.features}
        if policy == "skip":
            dropped = {name for names in lacking.values() for name in names}
            self.clips = [clip for clip in self.clips if clip.name not in dropped]
            if not self.clips:
                raise UserError(f"{self.label}: missing_features: skip leaves no clip; every clip lacks a feature file")
        note = f"of {count} clips have no array (missing_features: {policy})"
        return [f"{key}: {len(names)} {note}" for key, names in lacking.items() if names]


def place_by_name(name: str) -> float:
    """A place in [0, 1) that a clip has by its name alone, so that lists which share clips hold out the same ones."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64

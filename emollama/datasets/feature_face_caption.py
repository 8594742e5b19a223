"""Clips of an annotation list with pre-extracted features, captions and transcripts (MERR, MER2023, MER2024, EMER).

One clip's way: its row of the list -> label and caption (the answer), transcript (the words), features by slot -> Record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from torch import zeros

from emollama.config import MISSING
from emollama.data.batch import Record
from emollama.data.clips import (
    AnnotationFormat,
    Clip,
    file_exists,
    missing_names,
    read_annotations,
    read_captions,
    read_transcripts,
)
from emollama.data.features import FeatureFolder, SlotShape
from emollama.data.instructions import TaskPool, check_labels, user_text
from emollama.data.text import TEXT_PROCESSORS
from emollama.errors import UserError, listing
from emollama.paths import join, require_file
from emollama.registry import DATASETS

LABELS = ["happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt"]
CAPTIONS = {  # task -> (configuration key, field of the clip's JSON object)
    "reason": ("coarse_grained_json_path", "caption"),
    "reason_v2": ("fine_grained_json_path", "smp_reason_caption"),
}
FOLDERS = {  # configuration key -> the slots that its arrays fill
    "image_feature_path": ("image", "cls"),
    "face_feature_path": ("face",),
    "video_feature_path": ("video",),
    "audio_feature_path": ("audio",),
}


@DATASETS.register("feature_face_caption")
class FeatureFaceCaption:
    """The dataset behind a ``feature_face_caption`` block.

    Args:
        cfg: the block.
        slot_shapes: slot -> what the model expects of it.
        label: the block's label, for messages.
        training: False for evaluation, which never needs a caption: an answer that is not there is None.

    Raises:
        UserError: files or labels that are missing or wrong; see also :meth:`problems`.
    """

    @dataclass
    class Config:
        """Keys of a ``feature_face_caption`` block. Relative paths start at the current directory, or at ``data_root``."""

        annotation_file: str = MISSING
        """The list of clips: 'name count label [valence]' or 'name label', one a line."""
        annotation_format: AnnotationFormat = "auto"
        """ne, ncev, or auto (told by the number of fields)."""
        data_root: str | None = None
        """Where annotation_file and image_path start. Null: the current directory."""
        image_path: str | None = None
        """Folder of the videos. Not read where features are pre-extracted."""
        task_pool: Union[str, list[str], dict[str, Any]] = "emotion"  # noqa: UP007
        """Tasks to draw from: one, a list (a repeated name weighs more) or a mapping name -> weight."""
        instructions: dict[str, list[str]] = field(default_factory=dict)
        """task -> wordings, in place of the built-in ones. {labels} in a wording becomes the prompt labels."""
        labels: list[str] = field(default_factory=lambda: list(LABELS))
        """Labels that the list may hold."""
        prompt_labels: list[str] | None = None
        """Labels shown in the prompt, in this order. Null: the same as labels."""
        exclude_labels: list[str] = field(default_factory=list)
        """Clips with these labels are left out."""
        coarse_grained_json_path: str | None = "MERR_coarse_grained.json"
        """Captions of the task reason; starts at the annotation file's folder."""
        fine_grained_json_path: str | None = "MERR_fine_grained.json"
        """Captions of the task reason_v2; starts at the annotation file's folder."""
        transcription_path: str | None = "transcription_en_all.csv"
        """What is said: name,sentence. Null: prompts without a sentence."""
        image_feature_path: str | None = "eva"
        """Folder of EVA caches, (1 + P, width) each, row 0 the class token. Null: no image and class rows."""
        face_feature_path: str | None = "mae_340_UTT"
        """Folder of MAE features. Null: no face row."""
        video_feature_path: str | None = "maeV_399_UTT"
        """Folder of VideoMAE features. Null: no video row."""
        audio_feature_path: str | None = "HL-UTT"
        """Folder of HuBERT features. Null: no audio row."""
        missing_features: Literal["error", "zero", "skip"] = "error"
        """What to do about a clip without a file: stop, use zero rows, or leave the clip out."""
        check_values: Literal["small", "all"] = "small"
        """Which files' values are checked for NaN and inf before the start: those up to 1 MiB (larger ones when read), or all."""
        text_processor: Literal["blip_caption", "verbatim"] = "blip_caption"
        """What happens to answers before they are tokenized."""
        max_words: int = 200
        """Words of an answer that blip_caption keeps."""
        shuffle: bool = True
        """False draws the clips in file order, wrapping at the end."""
        batch_size: int = 1
        """Samples of a micro-batch on one process."""
        sample_ratio: float = 1.0
        """Share of this block among several datasets blocks, any positive scale."""

        def __post_init__(self) -> None:
            check_labels(self.labels, "labels")
            check_labels(self.prompt_labels or [], "prompt_labels")
            for key in ("batch_size", "max_words", "sample_ratio"):
                if not 0 < getattr(self, key) < float("inf"):
                    raise ValueError(f"{key} is {getattr(self, key)}; it must be above 0, and finite")
            for excluded in self.exclude_labels:
                if excluded not in self.labels:
                    raise ValueError(f"exclude_labels: '{excluded}' is not among labels ({', '.join(self.labels)})")
            self.pool()

        def pool(self) -> TaskPool:
            """The tasks with their weights and wordings."""
            return TaskPool(self.task_pool, self.instructions, self.prompt_labels or self.labels)

        def beside_list(self, path: str) -> str:
            """A path that starts at the annotation file's folder."""
            return join(os.path.dirname(join(self.data_root, self.annotation_file)), path)

    def __init__(self, cfg: Config, *, slot_shapes: Mapping[str, SlotShape], label: str, training: bool = True) -> None:
        self.cfg = cfg
        self.label = label
        self.training = training
        self.list_path = join(cfg.data_root, cfg.annotation_file)
        self.pool = cfg.pool()
        self.clips = self._listed_clips()
        self.sentences = read_transcripts(cfg.beside_list(cfg.transcription_path)) if cfg.transcription_path else None
        self.captions = {task: self._captions_of(task) for task in self.pool.tasks if task in CAPTIONS}
        self.folders = self._open_folders(slot_shapes)
        self._zeros = {slot: zeros(shape.rows, shape.width) for slot, shape in slot_shapes.items()}
        self._absent = {slot: zeros(0, shape.width) for slot, shape in slot_shapes.items()}
        self.notes = self._apply_missing_policy()

    def __len__(self) -> int:
        return len(self.clips)

    def names(self) -> list[str]:
        """The clips' names in order."""
        return [clip.name for clip in self.clips]

    def record(self, index: int, task: str, wording: str) -> Record:
        """Clip ``index`` asked for ``task`` with this wording; the answer is None where evaluation has none."""
        clip = self.clips[index]
        sentence = None if self.sentences is None else self.sentences[clip.name]
        answer = self._answer(clip, task)
        if answer is not None:
            answer = TEXT_PROCESSORS[self.cfg.text_processor](answer, self.cfg.max_words)
        features = dict(self._absent)
        for folder in self.folders:
            present = clip.name in folder.names
            features.update(folder.read(clip.name) if present else {slot: self._zeros[slot] for slot in folder.slots})
        return Record(clip.name, task, [(user_text(task, wording, sentence), answer)], features)

    def problems(self) -> list[str]:
        """Everything that would stop the run later: what each clip lacks, and which feature files are unusable.

        Opens every feature file of the list; values are read where the file is small.
        """
        names = self.names()
        found = []
        for task, table in self.captions.items():
            key, field_name = CAPTIONS[task]
            missing = missing_names(names, table)
            if missing and self.training:
                remedy = f"add '{field_name}' to {key}, or take the clips off the list, or '{task}' out of task_pool"
                found.append(f"no caption for task {task}, clips {listing(missing)}. Remedy: {remedy}.")
        if self.sentences is not None:
            missing = missing_names(names, self.sentences)
            if missing:
                found.append(
                    f"no row in {self.cfg.transcription_path} for clips {listing(missing)}. Remedy: add the rows (an empty"
                    " sentence is a clip without speech), or set transcription_path: null."
                )
        if self.cfg.missing_features == "error":
            for folder in self.folders:
                missing = missing_names(names, folder.names)
                if missing:
                    found.append(
                        f"no file in {folder.key} ({folder.folder}) for clips {listing(missing)}. Remedy: extract them, or set"
                        " missing_features: zero or skip."
                    )
        for folder in self.folders:
            found += folder.problems(names, all_values=self.cfg.check_values == "all")
        return [f"{self.label}: {text}" for text in found]

    def _listed_clips(self) -> list[Clip]:
        clips = read_annotations(self.list_path, self.cfg.annotation_format)
        if "emotion" in self.pool.tasks or self.cfg.exclude_labels:
            unknown = [f"'{clip.label}' (line {clip.line}, {clip.name})" for clip in clips if clip.label not in self.cfg.labels]
            if unknown:
                remedy = "correct the list or the block's labels; only a task_pool without 'emotion' takes a list without labels"
                known = ", ".join(self.cfg.labels)
                raise UserError(f"{self.list_path}: unknown label (known: {known}; {remedy}), clips {listing(unknown)}")
        kept = [clip for clip in clips if clip.label not in self.cfg.exclude_labels]
        if not kept:
            raise UserError(f"{self.list_path}: exclude_labels leaves no clip of {len(clips)}")
        return kept

    def _captions_of(self, task: str) -> dict[str, str]:
        key, field_name = CAPTIONS[task]
        configured: str | None = getattr(self.cfg, key)
        default = self.Config.__dataclass_fields__[key].default
        if configured is None and self.training:
            raise UserError(f"{self.label}.{key} is null, but task_pool has '{task}'. Name the captions' file.")
        path = None if configured is None else self.cfg.beside_list(configured)
        if not self.training and (configured is None or (configured == default and not file_exists(path))):
            return {}
        return read_captions(require_file(str(path), f"{self.label}.{key}"), field_name, key)

    def _open_folders(self, slot_shapes: Mapping[str, SlotShape]) -> list[FeatureFolder]:
        folders = []
        names = self.names()
        for key, slots in FOLDERS.items():
            path = getattr(self.cfg, key)
            if path is not None:
                where, shape = self.cfg.beside_list(path), slot_shapes[slots[0]]
                folders.append(FeatureFolder.open(where, slots, shape, f"{self.label}.{key}", names))
        return folders

    def _apply_missing_policy(self) -> list[str]:
        """Count what is missing and drop clips where the policy says so. Returns lines for the log."""
        lacking = {folder.key: missing_names(self.names(), folder.names) for folder in self.folders}
        notes = [
            f"{key}: {len(names)} of {len(self.clips)} clips have no file (missing_features: {self.cfg.missing_features})"
            for key, names in lacking.items()
            if names and self.cfg.missing_features != "error"
        ]
        if self.cfg.missing_features == "skip":
            dropped = {name for names in lacking.values() for name in names}
            self.clips = [clip for clip in self.clips if clip.name not in dropped]
            if not self.clips:
                raise UserError(f"{self.label}: missing_features: skip leaves no clip; every clip lacks a feature file")
        return notes

    def _answer(self, clip: Clip, task: str) -> str | None:
        if task in CAPTIONS:
            return self.captions[task].get(clip.name)
        return clip.label

"""Fill in a dataset block of a starter configuration: annotation file, captions, transcripts and feature folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.data.annotations import DFEW_DIGITS, SENTENCE_COLUMNS, padded_name
from emollama.data.label_map import LABELS
from emollama.registry import DATASETS
from emollama.starter.defaults import defaults
from emollama.starter.draft import Draft
from emollama.starter.feature_folders import FeatureFolder
from emollama.starter.survey import ClipFile, captioned_names, read_list, read_table

ENCODERS = {"image": "EVA", "face": "MAE", "video": "VideoMAE", "audio": "HuBERT"}  # default slot -> encoder of its features
CAPTIONS = {  # task -> key of its JSON file, field of the file that contains the answer
    "reason": ("coarse_grained_json_path", "caption"),
    "reason_v2": ("fine_grained_json_path", "smp_reason_caption"),
}
EMOTION_COLUMNS, REASON_COLUMNS = ("emotion", "label", "discrete", "emotions"), ("reason", "reasons", "caption", "english")


@dataclass(frozen=True)
class StarterBlock:
    """A dataset block that is filled in.

    Attributes:
        path: dotted path of the block, such as ``datasets.custom``.
        type: name of the registered dataset.
        defaults: default values of the dataset's keys.
        training: False for a block under ``evaluation_datasets``, which needs no captions.
    """

    path: str
    type: str
    defaults: Mapping[str, Any]
    training: bool

    @classmethod
    def of(cls, draft: Draft, path: str) -> StarterBlock:
        """Return the block with a path in a draft."""
        name = draft.text.get(f"{path}.type") or path.rpartition(".")[2]
        return cls(path, name, defaults(DATASETS, name), path.startswith("datasets."))


def find_usual(draft: Draft, block: StarterBlock) -> ClipFile | None:
    """Return the annotation file of the shipped configuration, at its configured path or anywhere in the data folder."""
    usual = draft.text.get(f"{block.path}.annotation_file", block.defaults.get("annotation_file", ""))
    usual = usual.replace("{split}", "train" if block.training else "test").replace("{fold}", "1")
    data_root = draft.configured_path(f"{block.path}.data_root")
    paths = [data_root / usual] if data_root is not None and (data_root / usual).is_file() else []
    paths += [path for path in draft.survey.files_named(Path(usual).name) if path.match(usual)]
    read = read_table if usual.endswith(".csv") else read_list
    return next((clip_file for path in paths if (clip_file := read(path)) is not None), None)


def find_any(draft: Draft, block: StarterBlock) -> ClipFile | None:
    """Return the annotation file that suits a block best.

    Files with "train" (for training) or "test" (for evaluation) in their path come first, then files with most arrays.
    """
    if block.type == "custom":
        answers = {*EMOTION_COLUMNS, *REASON_COLUMNS}
        candidates = [table for table in draft.survey.tables if answers & {*table.columns}]
    else:
        candidates = list(draft.survey.lists)
        if block.type == "emer":
            candidates += [table for table in draft.survey.tables if {"reasons", "english"} & {*table.columns}]
    split, other_split = ("train", "test") if block.training else ("test", "train")

    def rank(clip_file: ClipFile) -> tuple[bool, bool, int]:
        name = str(clip_file.path.relative_to(draft.survey.root)).lower()
        covered = max((folder.coverage(clip_file.names) for folder in draft.survey.features), default=0)
        return split in name, other_split not in name, covered

    return max(candidates, key=rank, default=None)


def fill(draft: Draft, block: StarterBlock, clip_file: ClipFile) -> None:
    """Fill in the block of an annotation file with the files that belong to it, and mark missing ones."""
    others = [other.path.name for other in draft.survey.lists if other.path.parent == clip_file.path.parent]
    also = [name for name in others if name != clip_file.path.name and not clip_file.columns]
    note = f"{len(clip_file.names):,} clips" + (f"; also here: {', '.join(also[:3])}" if also else "")
    if block.type == "dfew":
        draft.set_found(f"{block.path}.data_root", draft.config_path(clip_file.path.parent.parent), note)
    else:
        draft.text.set(f"{block.path}.data_root", draft.config_path(clip_file.path.parent))
        draft.set_found(f"{block.path}.annotation_file", clip_file.path.name, note)
    _drop_absent_videos(draft, block, clip_file)
    if block.type == "custom":
        _columns(draft, block, clip_file)
    _labels(draft, block, clip_file)
    _captions(draft, block, clip_file)
    _transcripts(draft, block, clip_file)
    _features(draft, block, clip_file)


def _drop_absent_videos(draft: Draft, block: StarterBlock, clip_file: ClipFile) -> None:
    key = f"{block.path}.image_path"
    if (value := draft.text.get(key)) is not None and not (clip_file.path.parent / value).is_dir():
        draft.text.drop(key)  # only needed if features are computed from videos in the training step


def _columns(draft: Draft, block: StarterBlock, table: ClipFile) -> None:
    """Set ``columns`` for columns with other names than the defaults, and ``task_pool`` to the tasks that have answers."""
    emotion = next((name for name in EMOTION_COLUMNS if name in table.columns), None)
    reason = next((name for name in REASON_COLUMNS if name in table.columns), None)
    sentence = next((name for name in ("sentence", *SENTENCE_COLUMNS) if name in table.columns), None)
    used = {"emotion": emotion, "sentence": sentence, "reason": reason}
    renamed = {key: column for key, column in used.items() if column is not None and column != key}
    if renamed:
        draft.set_found(f"{block.path}.columns", renamed, "columns with names other than the defaults")
    tasks = [task for task, column in (("emotion", emotion), ("reason", reason)) if column is not None]
    note = f"the table has the columns {', '.join(table.columns)}"
    if tasks:
        draft.set_found(f"{block.path}.task_pool", tasks, note)
    else:
        draft.mark_missing(f"{block.path}.task_pool", note, "add a column 'emotion' or 'reason'")


def _labels(draft: Draft, block: StarterBlock, clip_file: ClipFile) -> None:
    if block.type == "dfew" or f"{block.path}.preset" in draft.text or not clip_file.labels:
        return
    if "emotion" not in _tasks(draft, block):
        return  # only the task emotion uses labels
    labels = [label for label, _ in clip_file.labels.most_common()]
    key = f"{block.path}.labels"
    if key in draft.text or not {*labels} <= {*LABELS}:
        draft.set_found(key, labels, f"{len(labels)} labels in {clip_file.path.name}")


def _tasks(draft: Draft, block: StarterBlock) -> list[str]:
    pool = draft.text.get(f"{block.path}.task_pool", "emotion")
    return [task for task in ("emotion", *CAPTIONS) if task == pool or (task in pool and not isinstance(pool, str))]


def _captions(draft: Draft, block: StarterBlock, clip_file: ClipFile) -> None:
    """Set the caption file of each task, and remove tasks without answers from ``task_pool`` if another task remains."""
    if not all(key in block.defaults for key, _ in CAPTIONS.values()):
        return
    tasks, answered = _tasks(draft, block), []
    for task in tasks:
        if task == "emotion":
            answered += [task] if clip_file.labels or not block.training else []
            continue
        key, field = CAPTIONS[task]
        usual = block.defaults[key]
        path, count = _best_captions(draft, clip_file, usual, field)
        if path is not None:
            answered.append(task)
            value = path.name if path.parent == clip_file.path.parent else draft.config_path(path)
            lacking = len(clip_file.names) - count
            note = f"{count:,} captions" + (f"; {lacking:,} clips have no caption" if lacking else "")
            if value != usual or lacking:
                draft.set_found(f"{block.path}.{key}", value, note)
            else:
                draft.found_items.append(f"{block.path}.{key}: {value} ({note})")
    if not block.training or answered == tasks:
        return
    without = [task for task in tasks if task not in answered]
    if answered:
        draft.set_found(f"{block.path}.task_pool", answered, f"no captions or labels were found for {', '.join(without)}")
    else:
        remedy = (
            f"add {block.defaults[CAPTIONS[without[0]][0]]} next to the annotation file"
            if without[0] in CAPTIONS
            else "add labels to the annotation file"
        )
        draft.mark_missing(f"{block.path}.task_pool", f"no answers were found for {', '.join(without)}", remedy)


def _best_captions(draft: Draft, clip_file: ClipFile, usual: str, field: str) -> tuple[Path | None, int]:
    """Return the JSON file with captions for most clips, and their number.

    Of equal files, the usual name next to the annotation file comes first, then any file next to it.
    """
    here = clip_file.path.parent
    paths = sorted(draft.survey.files_with_extension(".json"), key=lambda path: (path != here / usual, path.parent != here))
    names, best, most = {*clip_file.names}, None, 0
    for path in paths:
        count = len(captioned_names(path, field) & names)
        if count > most:
            best, most = path, count
        if count == len(names):
            break
    return best, most


def _transcripts(draft: Draft, block: StarterBlock, clip_file: ClipFile) -> None:
    usual = draft.text.get(f"{block.path}.transcription_path") or block.defaults["transcription_path"]
    if usual is None or (block.type == "emer" and clip_file.columns):
        draft.text.drop(f"{block.path}.transcription_path")
        return
    key, names = f"{block.path}.transcription_path", {*clip_file.names}
    here = clip_file.path.parent
    tables = [table for table in draft.survey.tables if {*SENTENCE_COLUMNS} & {*table.columns}]
    tables.sort(key=lambda table: (-len(names & {*table.names}), table.path != here / usual, table.path.parent != here))
    count = len(names & {*tables[0].names}) if tables else 0
    if not count:
        what = f"no transcript file {usual} next to the annotation file"
        draft.mark_missing(key, what, "add it, or set null for prompts without a sentence", usual)
        return
    value = tables[0].path.name if tables[0].path.parent == here else draft.config_path(tables[0].path)
    lacking = len(names) - count
    note = f"sentences of {count:,} clips" + (f"; {lacking:,} clips have no row" if lacking else "")
    if value != usual or lacking or key in draft.text:
        draft.set_found(key, value, note)
    else:
        draft.found_items.append(f"{key}: {value} ({note})")


def _features(draft: Draft, block: StarterBlock, clip_file: ClipFile) -> None:
    here = clip_file.path.parent.parent if block.type == "dfew" else clip_file.path.parent
    optional = draft.text.get(f"{block.path}.missing_features") in ("zero", "skip")
    names = [padded_name(name, DFEW_DIGITS) for name in clip_file.names] if block.type == "dfew" else clip_file.names
    # An evaluation block with optional features measures answers without some features. It must not get features from
    # another folder.
    beside_only = optional and not block.training
    for slot in dict.fromkeys([*ENCODERS, *(folder.slot for folder in draft.survey.features if folder.slot is not None)]):
        key = f"{block.path}.features.{slot}"
        folders = [folder for folder in draft.survey.features if folder.slot == slot]
        folders = [folder for folder in folders if folder.path.parent == here or not beside_only]
        usual = block.defaults["features"].get(slot, slot)
        folder = _best_folder(folders, names, here, usual)
        if folder is None:
            if not optional and slot in ENCODERS:
                text, remedy = f"no {ENCODERS[slot]} features for these clips", "extract them, or set null to train without them"
                draft.mark_missing(key, text, remedy, draft.text.get(key) or usual)
            continue
        count = folder.coverage(names)
        lacking = f"; {len(names) - count:,} clips have no array" if count < len(names) else ""
        value = os.path.relpath(folder.path, here) if folder.path.is_relative_to(here) else draft.config_path(folder.path)
        draft.set_found(key, value, f"dimension {folder.width}, for {count:,} clips{lacking}")
        draft.features.setdefault(slot, folder)


def _best_folder(folders: Sequence[FeatureFolder], names: Sequence[str], here: Path, usual: str) -> FeatureFolder | None:
    """Return the folder with arrays for most clips; None if there are no such arrays.

    Of equal folders, the usual name next to the annotation file comes first, then any folder next to it.
    """

    def rank(folder: FeatureFolder) -> tuple[int, bool, bool]:
        return folder.coverage(names), folder.path == here / usual, folder.path.parent == here

    best = max(folders, key=rank, default=None)
    return best if best is not None and best.coverage(names) else None

"""A dataset's block of a starter configuration: its list, texts and feature folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.data.annotations import LABELS, SENTENCE_COLUMNS
from emollama.registry import DATASETS
from emollama.starter.defaults import defaults
from emollama.starter.draft import Draft
from emollama.starter.survey import ClipFile, FeatureFolder, captioned, read_list, read_table

SLOTS = {"image": "EVA", "face": "MAE", "video": "VideoMAE", "audio": "HuBERT"}  # slot -> the encoder of its features
CAPTIONS = {  # task -> key of its JSON file, the field that is the answer
    "reason": ("coarse_grained_json_path", "caption"),
    "reason_v2": ("fine_grained_json_path", "smp_reason_caption"),
}
EMOTION_COLUMNS, REASON_COLUMNS = ("emotion", "label", "discrete", "emotions"), ("reason", "reasons", "caption", "english")


@dataclass(frozen=True)
class StarterBlock:
    """Which block is filled in.

    Attributes:
        path: dotted, such as ``datasets.custom``.
        type: the registered dataset.
        defaults: of that dataset's keys.
        training: False for one under ``evaluation_datasets``, which needs no captions.
    """

    path: str
    type: str
    defaults: Mapping[str, Any]
    training: bool

    @classmethod
    def of(cls, draft: Draft, path: str) -> StarterBlock:
        """The block of that path in a draft."""
        name = draft.text.get(f"{path}.type") or path.rpartition(".")[2]
        return cls(path, name, defaults(DATASETS, name), path.startswith("datasets."))


def find_usual(draft: Draft, block: StarterBlock) -> ClipFile | None:
    """The file that the shipped configuration names: at its place, else anywhere below the data folder."""
    usual = draft.text.get(f"{block.path}.annotation_file", block.defaults.get("annotation_file", ""))
    usual = usual.replace("{split}", "train" if block.training else "test").replace("{fold}", "1")
    place = draft.expected(f"{block.path}.data_root")
    paths = [place / usual] if place is not None and (place / usual).is_file() else []
    paths += [path for path in draft.survey.named(Path(usual).name) if path.match(usual)]
    read = read_table if usual.endswith(".csv") else read_list
    return next((found for path in paths if (found := read(path)) is not None), None)


def find_any(draft: Draft, block: StarterBlock) -> ClipFile | None:
    """The list that suits a block best: most arrays, a name with train or test in it, as the block needs."""
    if block.type == "custom":
        answers = {*EMOTION_COLUMNS, *REASON_COLUMNS}
        candidates = [table for table in draft.survey.tables if answers & {*table.columns}]
    else:
        candidates = list(draft.survey.lists)
        if block.type == "emer":
            candidates += [table for table in draft.survey.tables if {"reasons", "english"} & {*table.columns}]
    wanted, unwanted = ("train", "test") if block.training else ("test", "train")

    def rank(found: ClipFile) -> tuple[bool, bool, int]:
        name = str(found.path.relative_to(draft.survey.root)).lower()
        covered = max((folder.coverage(found.names) for folder in draft.survey.features), default=0)
        return wanted in name, unwanted not in name, covered

    return max(candidates, key=rank, default=None)


def fill(draft: Draft, block: StarterBlock, listed: ClipFile) -> None:
    """Write what was found about a list into its block, and mark what is missing."""
    others = [other.path.name for other in draft.survey.lists if other.path.parent == listed.path.parent]
    also = [name for name in others if name != listed.path.name and not listed.columns]
    note = f"{len(listed.names):,} clips" + (f"; also here: {', '.join(also[:3])}" if also else "")
    if block.type == "dfew":
        draft.have(f"{block.path}.data_root", draft.written(listed.path.parent.parent), note)
    else:
        draft.text.set(f"{block.path}.data_root", draft.written(listed.path.parent))
        draft.have(f"{block.path}.annotation_file", listed.path.name, note)
    _drop_absent_videos(draft, block, listed)
    if block.type == "custom":
        _columns(draft, block, listed)
    _labels(draft, block, listed)
    _captions(draft, block, listed)
    _transcripts(draft, block, listed)
    _features(draft, block, listed)


def _drop_absent_videos(draft: Draft, block: StarterBlock, listed: ClipFile) -> None:
    key = f"{block.path}.image_path"
    if (value := draft.text.get(key)) is not None and not (listed.path.parent / value).is_dir():
        draft.text.drop(key)  # read only where features are computed from videos


def _columns(draft: Draft, block: StarterBlock, table: ClipFile) -> None:
    """Name the columns that are called otherwise, and the tasks that the table has answers to."""
    emotion = next((name for name in EMOTION_COLUMNS if name in table.columns), None)
    reason = next((name for name in REASON_COLUMNS if name in table.columns), None)
    sentence = next((name for name in ("sentence", *SENTENCE_COLUMNS) if name in table.columns), None)
    used = {"emotion": emotion, "sentence": sentence, "reason": reason}
    renamed = {key: column for key, column in used.items() if column is not None and column != key}
    if renamed:
        draft.have(f"{block.path}.columns", renamed, "columns of the table that have other names")
    tasks = [task for task, column in (("emotion", emotion), ("reason", reason)) if column is not None]
    note = f"the table has the columns {', '.join(table.columns)}"
    if tasks:
        draft.have(f"{block.path}.task_pool", tasks, note)
    else:
        draft.lack(f"{block.path}.task_pool", note, "add a column emotion or reason")


def _labels(draft: Draft, block: StarterBlock, listed: ClipFile) -> None:
    if block.type == "dfew" or f"{block.path}.preset" in draft.text or not listed.labels:
        return
    if "emotion" not in _tasks(draft, block):
        return  # labels matter to that task alone
    labels = [label for label, _ in listed.labels.most_common()]
    key = f"{block.path}.labels"
    if key in draft.text or not {*labels} <= {*LABELS}:
        draft.have(key, labels, f"{len(labels)} labels in {listed.path.name}")


def _tasks(draft: Draft, block: StarterBlock) -> list[str]:
    pool = draft.text.get(f"{block.path}.task_pool", "emotion")
    return [task for task in ("emotion", *CAPTIONS) if task == pool or (task in pool and not isinstance(pool, str))]


def _captions(draft: Draft, block: StarterBlock, listed: ClipFile) -> None:
    """Name the captions of each task; take tasks without any out of the pool, where another one remains."""
    if not all(key in block.defaults for key, _ in CAPTIONS.values()):
        return
    tasks, answered = _tasks(draft, block), []
    for task in tasks:
        if task == "emotion":
            answered += [task] if listed.labels or not block.training else []
            continue
        key, field = CAPTIONS[task]
        usual = block.defaults[key]
        path, count = _best_captions(draft, listed, usual, field)
        if path is not None:
            answered.append(task)
            value = path.name if path.parent == listed.path.parent else draft.written(path)
            lacking = len(listed.names) - count
            note = f"{count:,} captions" + (f"; {lacking:,} clips have none" if lacking else "")
            if value != usual or lacking:
                draft.have(f"{block.path}.{key}", value, note)
            else:
                draft.found.append(f"{block.path}.{key}: {value} ({note})")
    if not block.training or answered == tasks:
        return
    without = [task for task in tasks if task not in answered]
    if answered:
        draft.have(f"{block.path}.task_pool", answered, f"no captions or labels were found for {', '.join(without)}")
    else:
        remedy = (
            f"add {block.defaults[CAPTIONS[without[0]][0]]} beside the list"
            if without[0] in CAPTIONS
            else "add labels to the list"
        )
        draft.lack(f"{block.path}.task_pool", f"no answers were found for {', '.join(without)}", remedy)


def _best_captions(draft: Draft, listed: ClipFile, usual: str, field: str) -> tuple[Path | None, int]:
    """The JSON file with captions of most clips, the usual name and files beside the list first."""
    here = listed.path.parent
    paths = sorted(draft.survey.ending(".json"), key=lambda path: (path != here / usual, path.parent != here))
    names, best, most = {*listed.names}, None, 0
    for path in paths:
        count = len(captioned(path, field) & names)
        if count > most:
            best, most = path, count
        if count == len(names):
            break
    return best, most


def _transcripts(draft: Draft, block: StarterBlock, listed: ClipFile) -> None:
    usual = draft.text.get(f"{block.path}.transcription_path") or block.defaults["transcription_path"]
    if usual is None or (block.type == "emer" and listed.columns):
        draft.text.drop(f"{block.path}.transcription_path")
        return
    key, names = f"{block.path}.transcription_path", {*listed.names}
    here = listed.path.parent
    tables = [table for table in draft.survey.tables if {*SENTENCE_COLUMNS} & {*table.columns}]
    tables.sort(key=lambda table: (-len(names & {*table.names}), table.path != here / usual, table.path.parent != here))
    count = len(names & {*tables[0].names}) if tables else 0
    if not count:
        draft.lack(key, f"no transcript {usual} beside the list", "add it, or set null for prompts without a sentence", usual)
        return
    value = tables[0].path.name if tables[0].path.parent == here else draft.written(tables[0].path)
    lacking = len(names) - count
    note = f"sentences of {count:,} clips" + (f"; {lacking:,} clips have no row" if lacking else "")
    if value != usual or lacking or key in draft.text:
        draft.have(key, value, note)
    else:
        draft.found.append(f"{key}: {value} ({note})")


def _features(draft: Draft, block: StarterBlock, listed: ClipFile) -> None:
    here = listed.path.parent.parent if block.type == "dfew" else listed.path.parent
    optional = draft.text.get(f"{block.path}.missing_features") in ("zero", "skip")
    names = [name.zfill(5) for name in listed.names] if block.type == "dfew" else listed.names
    beside_only = optional and not block.training  # a block that measures what is answered without features
    for slot, encoder in SLOTS.items():
        key = f"{block.path}.{slot}_feature_path"
        folders = [found for found in draft.survey.features if found.slot == slot]
        folders = [found for found in folders if found.path.parent == here or not beside_only]
        usual = block.defaults[f"{slot}_feature_path"]
        folder = _best_folder(folders, names, here, usual)
        if folder is None:
            if not optional:
                text, remedy = f"no folder of {encoder} arrays for these clips", "extract them, or set null to train without"
                draft.lack(key, text, remedy, draft.text.get(key) or usual)
            continue
        count = folder.coverage(names)
        lacking = f"; {len(names) - count:,} clips have none" if count < len(names) else ""
        value = os.path.relpath(folder.path, here) if folder.path.is_relative_to(here) else draft.written(folder.path)
        draft.have(key, value, f"width {folder.width}, for {count:,} clips{lacking}")
        draft.features.setdefault(slot, folder)


def _best_folder(folders: Sequence[FeatureFolder], names: Sequence[str], here: Path, usual: str) -> FeatureFolder | None:
    """The folder with arrays of most clips; of equal ones the usual name beside the list, then any beside the list."""

    def rank(folder: FeatureFolder) -> tuple[int, bool, bool]:
        return folder.coverage(names), folder.path == here / usual, folder.path.parent == here

    best = max(folders, key=rank, default=None)
    return best if best is not None and best.coverage(names) else None

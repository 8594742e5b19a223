"""The texts of a block: labels, answers, sentences, and captions that are not what they should be."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from emollama.checks.captions import LabelWords, is_refusal
from emollama.checks.findings import Finding
from emollama.data.annotations import file_exists, read_json
from emollama.data.instructions import TASK_NAMES, TaskPool, user_text
from emollama.data.slots import SlotShape
from emollama.datasets.custom import Custom
from emollama.datasets.emer import CAPTION_FIELD, DESCRIPTIONS, EMER
from emollama.datasets.feature_clips import SLOTS_BY_KEY, FeatureClips
from emollama.datasets.feature_face_caption import CAPTIONS, FeatureFaceCaption
from emollama.errors import UserError


def other_answers(dataset: FeatureClips, shapes: Mapping[str, SlotShape]) -> dict[str, int]:
    """Task that is not in the pool -> clips that could answer it with the files as they are, if there are any.

    Args:
        dataset: a block's; another one is made of the same class and keys, without features.
        shapes: what it was built with.
    """
    others = [task for task in TASK_NAMES if task not in dataset.pool.tasks]
    found = {"emotion": sum(clip.label in dataset.cfg.labels for clip in dataset.clips)} if "emotion" in others else {}
    captioned = [task for task in others if task != "emotion"]
    if captioned:
        without: dict[str, Any] = dict.fromkeys([*SLOTS_BY_KEY, "transcription_path"])
        cfg = dataclasses.replace(dataset.cfg, task_pool=captioned, curriculum={}, **without)
        with contextlib.suppress(UserError):
            other = type(dataset)(cfg, slot_shapes=shapes, label=dataset.label, training=False)
            found |= {task: sum(bool(other.answer(clip, task)) for clip in other.clips) for task in captioned}
    return {task: count for task, count in found.items() if count}


def sentence_counts(dataset: FeatureClips) -> dict[str, int] | None:
    """Clips with a row in the transcripts, those without words, how many are different, rows of clips not listed."""
    table = dataset.table
    if table.sentences is None:
        return None
    listed = {clip.name for clip in table.clips}
    given = [table.sentences[name] for name in dataset.names() if name in table.sentences]
    return {
        "clips": len(given),
        "empty": sum(not sentence for sentence in given),
        "different": len(set(given)),
        "of clips not listed": sum(name not in listed for name in table.sentences),
    }


def caption_findings(dataset: FeatureClips) -> Iterator[Finding]:
    """Refusals, captions that name another label, repeated ones, and those of clips that the list does not name."""
    labels = {clip.name: clip.label for clip in dataset.clips}
    listed = {clip.name for clip in dataset.table.clips}
    words = LabelWords(dataset.cfg.labels)
    for place, captions in {dataset.caption_source(task): texts for task, texts in dataset.table.captions.items()}.items():
        own = {name: captions[name] for name in labels if name in captions}
        refusals = tuple(name for name, text in own.items() if is_refusal(text))
        if refusals:
            text = f"{place}: captions that are refusals of the language model that wrote them. Remedy: {dataset.label}.exclude"
            yield Finding("problem", "refusal", text, dataset.label, refusals)
        others = {name: other for name, text in own.items() if (other := words.other(text, labels[name])) is not None}
        if others:
            details = tuple(f"{name} ({labels[name]}; the caption: {other})" for name, other in others.items())
            text = f"{place}: captions that name one label, and not the clip's. A hint: read them"
            yield Finding("note", "label and caption", text, dataset.label, tuple(others), details)
        counts = Counter(own.values())
        repeated = tuple(name for name, text in own.items() if counts[text] > 1)
        if repeated:
            text = f"{place}: clips whose caption is another clip's too, word for word"
            yield Finding("note", "repeated caption", text, dataset.label, repeated)
        strange = tuple(name for name in captions if name not in listed)
        if strange:
            text = f"{place}: captions of clips that {dataset.list_path()} does not list"
            yield Finding("note", "unlisted captions", text, dataset.label, strange)


def empty_captions(dataset: FeatureClips) -> Iterator[Finding]:
    """Captions that stand in their file and hold no text; the readers take these clips as clips without one."""
    for task, captions in dataset.table.captions.items():
        without = [name for name in dataset.names() if name not in captions]
        given = _captioned_clips(dataset, task) if without else {}
        empty = tuple(name for name in without if name in given)
        if empty:
            text = f"{dataset.caption_source(task)}: of the clips without a caption for task {task}, these have an empty one"
            yield Finding("note", "empty caption", text, dataset.label, empty)


def _captioned_clips(dataset: FeatureClips, task: str) -> set[str]:
    """Clips whose caption has a place in its file, be it filled or not."""
    clips = dataset.table.clips
    if isinstance(dataset, Custom):
        column = dataset.cfg.columns.get("reason", "reason")
        return {clip.name for clip in clips if column in clip.columns}
    if isinstance(dataset, EMER) and dataset.list_path().endswith(".csv"):
        return {clip.name for clip in clips if any(column in clip.columns for column in DESCRIPTIONS)}
    if isinstance(dataset, FeatureFaceCaption):
        key, field = CAPTIONS[task]
    elif isinstance(dataset, EMER):
        key, field = "captions_path", CAPTION_FIELD
    else:
        return set()
    configured = getattr(dataset.cfg, key)
    path = None if configured is None else dataset.beside_list(configured)
    return {name for name, entry in read_json(str(path)).items() if field in entry} if file_exists(path) else set()


def answers(dataset: FeatureClips) -> dict[str, dict[str, str | None]]:
    """Task of the pool -> clip -> its answer, as it is trained on; None where there is none."""
    return {task: {clip.name: dataset.answer(clip, task) for clip in dataset.clips} for task in dataset.pool.tasks}


def answer_findings(dataset: FeatureClips, given: Mapping[str, Mapping[str, str | None]]) -> Iterator[Finding]:
    """Answers that are empty once processed, and clips that an evaluation cannot be scored on.

    Args:
        dataset: the block's.
        given: what :func:`answers` gave.
    """
    for task, by_clip in given.items():
        empty = tuple(name for name, answer in by_clip.items() if answer == "")
        if empty:
            text = f"task {task}: answers of which text_processor {dataset.cfg.text_processor} leaves nothing; the model"
            yield Finding("note", "empty answer", f"{text} learns to say nothing for these clips", dataset.label, empty)
        none = tuple(name for name, answer in by_clip.items() if answer is None)
        if none and not dataset.training:
            text = f"task {task}: clips without an answer; their predictions have no target to compare with"
            yield Finding("note", "no answer", text, dataset.label, none)


def asked(pool: TaskPool, instruction: str | None) -> list[tuple[str, str]]:
    """(task, instruction) pairs in use: every instruction in training; in evaluation the ``instruction`` of the block."""
    if instruction is None:
        return [(task, instruction) for task in pool.tasks for instruction in pool.instructions[task]]
    return [
        (task, pool.first_instruction(task) if instruction == "first" else pool.fill_labels(instruction)) for task in pool.tasks
    ]


def user_texts(dataset: FeatureClips, task: str, instruction: str) -> dict[str, str]:
    """Clip -> what the user says when it is asked so; a sentence that is missing counts as an empty one."""
    sentences = dataset.table.sentences
    spoken = {name: None if sentences is None else sentences.get(name, "") for name in dataset.names()}
    return {name: user_text(task, instruction, sentence) for name, sentence in spoken.items()}

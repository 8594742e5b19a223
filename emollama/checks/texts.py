"""Checks of the texts of a block: labels, answers, transcripts and captions."""

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
    """Return the tasks that are not in ``task_pool`` but could be: task -> number of clips with an answer.

    Args:
        dataset: the dataset of a block. A second one is built from its class and keys, without features.
        shapes: the slot shapes of the model.
    """
    others = [task for task in TASK_NAMES if task not in dataset.pool.tasks]
    counts = {"emotion": sum(clip.label in dataset.cfg.labels for clip in dataset.clips)} if "emotion" in others else {}
    captioned = [task for task in others if task != "emotion"]
    if captioned:
        without: dict[str, Any] = dict.fromkeys([*SLOTS_BY_KEY, "transcription_path"])
        cfg = dataclasses.replace(dataset.cfg, task_pool=captioned, curriculum={}, **without)
        with contextlib.suppress(UserError):
            other = type(dataset)(cfg, slot_shapes=shapes, block_path=dataset.block_path, training=False)
            counts |= {task: sum(bool(other.answer(clip, task)) for clip in other.clips) for task in captioned}
    return {task: count for task, count in counts.items() if count}


def sentence_counts(dataset: FeatureClips) -> dict[str, int] | None:
    """Count clips with a transcript, empty transcripts, different sentences, and transcripts of clips that are not listed."""
    table = dataset.table
    if table.sentences is None:
        return None
    listed = {clip.name for clip in table.clips}
    sentences = [table.sentences[name] for name in dataset.names() if name in table.sentences]
    return {
        "clips": len(sentences),
        "empty": sum(not sentence for sentence in sentences),
        "different": len(set(sentences)),
        "of clips not listed": sum(name not in listed for name in table.sentences),
    }


def caption_findings(dataset: FeatureClips) -> Iterator[Finding]:
    """Yield findings about refusals, captions that name another label, repeated captions, and captions of unlisted clips."""
    labels = {clip.name: clip.label for clip in dataset.clips}
    listed = {clip.name for clip in dataset.table.clips}
    label_words = LabelWords(dataset.cfg.labels)
    # Several tasks may use the same captions, which are checked once.
    for source, captions in {dataset.caption_source(task): texts for task, texts in dataset.table.captions.items()}.items():
        own = {name: captions[name] for name in labels if name in captions}
        refusals = tuple(name for name, text in own.items() if is_refusal(text))
        if refusals:
            text = f"{source}: captions in which a language model refuses to describe. Exclude them with"
            text += f" {dataset.block_path}.exclude"
            yield Finding("problem", "refusal", text, dataset.block_path, refusals)
        others = {name: other for name, text in own.items() if (other := label_words.other(text, labels[name])) is not None}
        if others:
            details = tuple(f"{name} ({labels[name]}; the caption: {other})" for name, other in others.items())
            text = f"{source}: captions that name a label other than the clip's (only a hint; read these captions)"
            yield Finding("note", "label and caption", text, dataset.block_path, tuple(others), details)
        counts = Counter(own.values())
        repeated = tuple(name for name, text in own.items() if counts[text] > 1)
        if repeated:
            text = f"{source}: these clips have exactly the same caption as another clip"
            yield Finding("note", "repeated caption", text, dataset.block_path, repeated)
        unlisted = tuple(name for name in captions if name not in listed)
        if unlisted:
            text = f"{source}: captions of clips that {dataset.list_path()} does not contain"
            yield Finding("note", "unlisted captions", text, dataset.block_path, unlisted)


def empty_captions(dataset: FeatureClips) -> Iterator[Finding]:
    """Yield notes about entries of caption files without text. The dataset treats such clips as clips without a caption."""
    for task, captions in dataset.table.captions.items():
        without = [name for name in dataset.names() if name not in captions]
        with_entry = _clips_with_entry(dataset, task) if without else {}
        empty = tuple(name for name in without if name in with_entry)
        if empty:
            text = f"{dataset.caption_source(task)}: the captions of these clips for task {task} are empty"
            yield Finding("note", "empty caption", text, dataset.block_path, empty)


def _clips_with_entry(dataset: FeatureClips, task: str) -> set[str]:
    """Return the clips that have an entry in the caption file or column, empty or not."""
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
    path = None if configured is None else dataset.resolve_path(configured)
    return {name for name, entry in read_json(str(path)).items() if field in entry} if file_exists(path) else set()


def answers(dataset: FeatureClips) -> dict[str, dict[str, str | None]]:
    """Return task of the task pool -> clip name -> processed answer; None for clips without an answer."""
    return {task: {clip.name: dataset.answer(clip, task) for clip in dataset.clips} for task in dataset.pool.tasks}


def answer_findings(dataset: FeatureClips, answers_by_task: Mapping[str, Mapping[str, str | None]]) -> Iterator[Finding]:
    """Yield notes about answers that are empty after processing, and about clips of an evaluation without an answer.

    Args:
        dataset: the dataset of the block.
        answers_by_task: the result of :func:`answers`.
    """
    for task, answers_by_clip in answers_by_task.items():
        empty = tuple(name for name, answer in answers_by_clip.items() if answer == "")
        if empty:
            text = f"task {task}: the answers of these clips are empty after text_processor {dataset.cfg.text_processor}"
            yield Finding("note", "empty answer", f"{text}, so the model learns empty answers", dataset.block_path, empty)
        none = tuple(name for name, answer in answers_by_clip.items() if answer is None)
        if none and not dataset.training:
            text = f"task {task}: these clips have no reference answer, so their predictions are not scored"
            yield Finding("note", "no answer", text, dataset.block_path, none)


def instructions_in_use(pool: TaskPool, instruction: str | None) -> list[tuple[str, str]]:
    """Return the (task, instruction) pairs in use.

    Args:
        pool: the task pool of the dataset.
        instruction: key ``instruction`` of an evaluation block; None for training, which uses all instructions.
    """
    if instruction is None:
        return [(task, instruction) for task in pool.tasks for instruction in pool.instructions[task]]
    return [
        (task, pool.first_instruction(task) if instruction == "first" else pool.fill_labels(instruction)) for task in pool.tasks
    ]


def user_texts(dataset: FeatureClips, task: str, instruction: str) -> dict[str, str]:
    """Return clip name -> user text with this instruction; a missing sentence is replaced by an empty one."""
    sentences = dataset.table.sentences
    spoken = {name: None if sentences is None else sentences.get(name, "") for name in dataset.names()}
    return {name: user_text(task, instruction, sentence) for name, sentence in spoken.items()}

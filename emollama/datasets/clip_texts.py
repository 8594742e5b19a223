"""The texts of a dataset of clips: labels, spoken sentences, captions, and the selection of clips."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
from typing import Any

from emollama.data.annotations import Clip, Table, missing_names, read_json, read_transcripts
from emollama.data.dataset import DatasetContent
from emollama.data.instructions import TASK_NAMES, user_text
from emollama.data.problems import Problem
from emollama.data.text_checks import file_exists
from emollama.data.text_processors import TEXT_PROCESSORS
from emollama.errors import UserError
from emollama.listing import abbreviated, listing
from emollama.paths import join
from emollama.suggestions import did_you_mean


class ClipTexts:
    """The part of a dataset of clips that needs no features.

    Args:
        cfg: the dataset's block of the configuration.
        block_path: path of the config block, such as ``datasets.merr``, for messages.
        training: False for evaluation, in which a missing reference answer is None and not a problem.
        table: the texts, in place of those of the annotation files.

    Attributes:
        table: all texts of the annotation files.
        clips: the selected rows of the table, with mapped labels.
        notes: lines for the log.

    Raises:
        UserError: If a file is missing or unreadable. Problems of single clips are passed to :meth:`report`.
    """

    def __init__(self, cfg: Any, *, block_path: str, training: bool, table: Table | None = None) -> None:
        self.cfg = cfg
        self.block_path = block_path
        self.training = training
        self.pool = cfg.pool()
        self._reported: list[Problem] = []
        self.notes: list[str] = []
        self.table = self.read_table() if table is None else table
        if cfg.transcription_path is not None:
            self.table = dataclasses.replace(self.table, sentences=self._transcripts())
        self.table = with_shared_names(self.table)
        self.clips = self._select_clips()

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

    def user_text(self, index: int, task: str | None, instruction: str) -> str:
        """Return the user text of clip ``index``: sentence, task and instruction."""
        # problems() reports a clip without a row; check-data measures its prompt all the same.
        sentence = None if self.table.sentences is None else self.table.sentences.get(self.clips[index].name, "")
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

    def caption_entries(self, task: str) -> set[str]:
        """Return the names of the clips that have an entry for a task's caption in the data, empty or not.

        :meth:`inspect` reports entries without a caption as empty captions. By default, there are none.
        """
        return set()

    def names_with_field(self, path: str | None, field: str) -> set[str]:
        """Return the clips whose object in a JSON file has a field; none if the path is null or there is no such file."""
        resolved = None if path is None else self.resolve_path(path)
        entries = read_json(resolved, lone_surrogates_allowed=True) if resolved is not None and file_exists(resolved) else {}
        return {name for name, entry in entries.items() if isinstance(entry, dict) and field in entry}

    def inspect(self) -> DatasetContent:
        """Return the texts for ``emollama check-data``."""
        return DatasetContent(
            listed={clip.name for clip in self.table.clips},
            answers={task: {clip.name: self.answer(clip, task) for clip in self.clips} for task in self.pool.tasks},
            list_file=self.list_path(),
            labels={clip.name: clip.label for clip in self.clips if clip.label},
            sentences=self.table.sentences,
            # Several tasks may have the same captions, which are checked once.
            captions={self.caption_source(task): captions for task, captions in self.table.captions.items()},
            other_answers=self._other_answers(),
            exclude_key=f"{self.block_path}.exclude",
            notes=self._empty_captions(),
        )

    def _other_answers(self) -> dict[str, int]:
        """Return task outside the pool -> number of clips with an answer to it."""
        others = [task for task in TASK_NAMES if task not in self.pool.tasks]
        counts = {"emotion": sum(clip.label in self.cfg.labels for clip in self.clips)} if "emotion" in others else {}
        captioned = [task for task in others if task != "emotion"]
        if captioned:
            other = copy.copy(self)
            other.cfg = dataclasses.replace(self.cfg, task_pool=captioned, curriculum={})
            other.pool, other.training, other._reported = other.cfg.pool(), False, []
            with contextlib.suppress(UserError):
                other.table = other.read_table()
                counts |= {task: sum(bool(other.answer(clip, task)) for clip in self.clips) for task in captioned}
        return {task: count for task, count in counts.items() if count}

    def _empty_captions(self) -> list[Problem]:
        """Return notes about entries of caption files without text, which count as missing captions."""
        notes = []
        for task, captions in self.table.captions.items():
            without = missing_names(self.names(), captions)
            with_entry = self.caption_entries(task) if without else set()
            if empty := tuple(name for name in without if name in with_entry):
                text = f"{self.caption_source(task)}: the captions of these clips for task {task} are empty"
                notes.append(Problem("empty caption", text, empty))
        return notes

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
        label_map = cfg.accepted_labels()
        # A label that is neither accepted nor a synonym stays as it is, for the message below.
        new_labels = {raw: label_map.resolve(raw) or label_map.mapped(raw) for raw in {clip.label for clip in self.table.clips}}
        # A clip whose label does not change takes no more memory.
        clips = [
            clip if new_labels[clip.label] == clip.label else dataclasses.replace(clip, label=new_labels[clip.label])
            for clip in self.table.clips
        ]
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


def with_shared_names(table: Table) -> Table:
    """Return the same texts with one object for each name, which takes less memory than one of each file."""
    names = {clip.name: clip.name for clip in table.clips}

    def shared(texts: dict[str, str]) -> dict[str, str]:
        return {names.get(name, name): text for name, text in texts.items()}

    sentences = None if table.sentences is None else shared(table.sentences)
    return Table(table.clips, sentences, {task: shared(captions) for task, captions in table.captions.items()})


def name_fraction(name: str) -> float:
    """Map a name to a fixed number in [0, 1), so that lists with common samples hold out the same samples."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64

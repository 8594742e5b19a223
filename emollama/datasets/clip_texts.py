"""The texts of a dataset of clips: labels, spoken sentences, captions, and the selection of clips."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emollama.data.annotations import Clip, Table, read_json, read_transcripts
from emollama.data.dataset import DatasetContent
from emollama.data.instructions import TASK_NAMES, user_text
from emollama.data.problems import Problem
from emollama.data.text_checks import file_exists
from emollama.data.text_columns import missing_names
from emollama.data.text_index import IndexedTexts
from emollama.data.text_processors import TEXT_PROCESSORS
from emollama.data.text_table import ClipRows, in_arrays
from emollama.datasets.indexed_texts import TextIndex
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
        self._index: TextIndex | None = None
        self.table, self.clips = self._indexed_texts() if table is None else self._selected(table)

    def read_table(self) -> Table:
        """Read the annotation file and the captions; passes problems of single rows to :meth:`report`."""
        raise NotImplementedError

    def text_files(self) -> list[str]:
        """Return the paths of the files that :meth:`read_table` reads, whether they exist or not."""
        return [self.list_path()]

    def _indexed_texts(self) -> tuple[Table, ClipRows]:
        """Return the texts of the annotation files and the selection: from the index, which is written if there is none."""
        index = TextIndex.of_dataset(self)
        indexed = None if index is None else index.read()
        if indexed is None:
            notes = len(self.notes)
            table, clips = self._selected(self.read_table())
            indexed = IndexedTexts(table, clips, self.notes[notes:])
            # Of files with problems, each start reports them.
            if index is None or self._reported or not index.write(indexed):
                return table, clips
        else:
            self.notes += indexed.notes
        self._index = index
        return indexed.table, indexed.clips

    def _selected(self, table: Table) -> tuple[Table, ClipRows]:
        if self.cfg.transcription_path is not None:
            table = dataclasses.replace(table, sentences=self._transcripts())
        table = in_arrays(table)
        return table, self._select_clips(table)

    def _transcripts(self) -> Mapping[str, str] | None:
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
        return self._text_digest() if self._index is None else self._index.digest(self, self._text_digest)

    def _text_digest(self) -> str:
        sentences, tasks = self.table.sentences or {}, self.pool.tasks
        # That of the JSON of a list of all clips, without the list.
        digest, separator = hashlib.sha256(), b"["
        for clip in self.clips:
            row = [clip.name, sentences.get(clip.name), *(self.answer(clip, task) for task in tasks)]
            digest.update(separator + json.dumps(row).encode())
            separator = b", "
        digest.update(b"]" if self.clips else b"[]")
        return digest.hexdigest()[:16]

    def names(self) -> Sequence[str]:
        """Return the names of the clips in order."""
        return self.clips.names if isinstance(self.clips, ClipRows) else [clip.name for clip in self.clips]

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

    def _select_clips(self, table: Table) -> ClipRows:
        cfg, all_clips = self.cfg, table.clips
        assert isinstance(all_clips, ClipRows)
        label_map, label_ids = cfg.accepted_labels(), all_clips.source.label_ids
        # A label that is neither accepted nor a synonym stays as it is, for the message below.
        labels = [label_map.resolve(raw) or label_map.mapped(raw) for raw in all_clips.labels]
        clips = ClipRows(all_clips.source, all_clips.rows, labels)
        names = set(cfg.exclude)
        excluded = np.array([name in names for name in clips.names]) if names else np.zeros(len(clips), bool)
        if "emotion" in self.pool.tasks or cfg.exclude_labels:
            # Evaluation may include clips without a label. They are answered and not scored.
            accepted = {*cfg.labels, *cfg.exclude_labels, *([] if self.training else [""])}
            is_unknown = np.array([label not in accepted for label in labels])[label_ids] & ~excluded
            if is_unknown.any():
                unknown = clips.at(clips.rows[is_unknown])
                details = tuple(f"'{clip.label}' (line {clip.line}, {clip.name})" for clip in unknown)
                remedy = "Correct the list, labels or label_map; only a task_pool without 'emotion' allows a list without labels"
                text = f"{self.list_path()}: {listing(details, 'unknown label')}. Known: {abbreviated(cfg.labels)}. {remedy}."
                self.report(Problem("label", text, tuple(unknown.names), details))
        self._check_excluded_labels(list(dict.fromkeys(filter(None, labels))))
        unlisted = missing_names(cfg.exclude, set(clips.names)) if cfg.exclude else []
        if unlisted:
            text = listing(unlisted, "clip")
            raise UserError(f"{self.block_path}.exclude contains {text}. {self.list_path()} does not list them")
        left_out = np.array([label in cfg.exclude_labels for label in labels])[label_ids] | excluded
        included = clips.at(clips.rows[~left_out])
        if not included:
            raise UserError(f"{self.list_path()}: exclude and exclude_labels remove all clips ({len(clips)} in total)")
        if not cfg.held_out:
            return included
        is_selected = np.array([(name_fraction(name) < cfg.held_out) != self.training for name in included.names])
        if not is_selected.any():
            use, size = ("training", "smaller") if self.training else ("evaluation", "larger")
            text = f"{cfg.held_out} leaves no clips for {use} ({len(included)} in total); use a {size} value"
            raise UserError(f"{self.block_path}.held_out: {text}")
        return included.at(included.rows[is_selected])

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


def name_fraction(name: str) -> float:
    """Map a name to a fixed number in [0, 1), so that lists with common samples hold out the same samples."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64

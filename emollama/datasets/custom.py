"""Your own clips in one CSV with the column name and any of the columns emotion, sentence and reason."""

from __future__ import annotations

import dataclasses

from emollama.data.annotations import Clip, Table, read_clip_table
from emollama.data.csv_files import require_column
from emollama.datasets.configs import CustomConfig
from emollama.datasets.feature_clips import FeatureClips
from emollama.errors import UserError
from emollama.listing import abbreviated

ANSWER_KEYS = {"emotion": "emotion", "reason": "reason", "reason_v2": "reason"}  # task -> key of the column with its answers


class Custom(FeatureClips):
    """The dataset of a ``custom`` block."""

    Config = CustomConfig

    cfg: CustomConfig

    def read_table(self) -> Table:
        """Read the table.

        Raises:
            UserError: If a column of ``columns``, or the answer column of a training task, is missing.
        """
        path = self.list_path()
        clips = read_clip_table(path, None, self.report, self.list_key)
        header = list(clips[0].columns)
        for key in self.cfg.columns:
            require_column(path, header, [self._column(key)])
        for task in self.pool.tasks if self.training else ():
            if self._column(ANSWER_KEYS[task]) not in header:
                raise UserError(
                    f"{path}, line 1: the task '{task}' of {self.block_path}.task_pool needs the column"
                    f" '{self._column(ANSWER_KEYS[task])}'; besides the name, the header has {abbreviated(header) or 'nothing'}."
                    f" Add the column, set its name in {self.block_path}.columns, or remove the task."
                )
        sentences, reasons = self._texts(clips, "sentence"), self._texts(clips, "reason")
        emotions = self._texts(clips, "emotion") or {}
        labelled = [dataclasses.replace(clip, label=emotions.get(clip.name, "")) for clip in clips]
        captions = {name: text for name, text in (reasons or {}).items() if text}
        return Table(labelled, sentences, {task: captions for task in self.pool.tasks if task != "emotion"})

    def caption_entries(self, task: str) -> set[str]:
        """Return the clips whose row has the column ``reason``."""
        return {clip.name for clip in self.table.clips if self._column("reason") in clip.columns}

    def _column(self, key: str) -> str:
        return self.cfg.columns.get(key, key)

    def _texts(self, clips: list[Clip], key: str) -> dict[str, str] | None:
        """Return name -> cell; None if the table has no such column."""
        column = self._column(key)
        return {clip.name: clip.columns[column] for clip in clips} if column in clips[0].columns else None

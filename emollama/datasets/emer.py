"""EMER: clips with a description of their emotion, in a published table (version 1 or 2) or a plain list."""

from __future__ import annotations

import dataclasses

from emollama.data.annotations import Table, read_annotations, read_captions, read_clip_table
from emollama.data.csv_files import require_column
from emollama.data.text_checks import file_exists
from emollama.datasets.configs import EMERConfig
from emollama.datasets.feature_clips import FeatureClips
from emollama.paths import extension

DESCRIPTIONS = ("reasons", "english", "chi_reasons")  # columns with descriptions in the two tables and in answer files
CAPTION_FIELD = "smp_reason_caption"


class EMER(FeatureClips):
    """The dataset of an ``emer`` block. The tasks ``reason`` and ``reason_v2`` have reference answers.

    The format is recognized by the file: a table ``names,emotions,subtitles,reasons`` (version 1) or ``name,chinese,english``
    (version 2), or a list of lines ``name count 0``, for which captions are optional.
    """

    Config = EMERConfig

    cfg: EMERConfig

    def read_table(self) -> Table:
        """Read the table or the list."""
        path = self.list_path()
        if extension(path) != ".csv":
            return Table(
                read_annotations(path, report=self.report, key=self.list_key), None, self._answers(self._listed_captions())
            )
        clips = read_clip_table(path, None, self.report, self.list_key)
        first = clips[0].columns
        column = require_column(path, list(first), DESCRIPTIONS)
        labelled = [dataclasses.replace(clip, label=clip.columns.get("emotions", "")) for clip in clips]
        sentences = {clip.name: clip.columns["subtitles"] for clip in clips} if "subtitles" in first else None
        captions = {clip.name: clip.columns[column] for clip in clips if clip.columns[column]}
        return Table(labelled, sentences, self._answers(captions))

    def text_files(self) -> list[str]:
        """Return the paths of the table or list, and of the captions of a list."""
        captions = [] if self.cfg.captions_path is None else [self.resolve_path(self.cfg.captions_path)]
        return [*super().text_files(), *captions]

    def caption_source(self, task: str) -> str:
        """Return where the answers come from, for messages: the table, or the caption file of a list."""
        if extension(self.list_path()) == ".csv":
            return self.list_path()
        if self.cfg.captions_path is None:
            return f"set {self.block_path}.captions_path to their file; it is null"
        return f"'{CAPTION_FIELD}' in {self.cfg.captions_path}"

    def caption_entries(self, task: str) -> set[str]:
        """Return the clips with a description in their row or, for a list, in the caption file, empty or not."""
        if extension(self.list_path()) == ".csv":
            return {clip.name for clip in self.table.clips if any(column in clip.columns for column in DESCRIPTIONS)}
        return self.names_with_field(self.cfg.captions_path, CAPTION_FIELD)

    def _answers(self, captions: dict[str, str]) -> dict[str, dict[str, str]]:
        return {task: captions for task in self.pool.tasks if task != "emotion"}

    def _listed_captions(self) -> dict[str, str]:
        if self.cfg.captions_path is None or self.pool.tasks == ("emotion",):
            return {}
        path = self.resolve_path(self.cfg.captions_path)
        if not self.training and self.cfg.captions_path == self.Config.captions_path and not file_exists(path):
            return {}
        return read_captions(path, CAPTION_FIELD, f"{self.block_path}.captions_path", self.report)

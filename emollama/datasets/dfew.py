"""DFEW: seven emotions as numbers, and five folds with one CSV per split."""

from __future__ import annotations

import dataclasses

from emollama.data.annotations import Clip, Table, padded_name, read_clip_table
from emollama.data.problems import Problem
from emollama.datasets.configs import DFEWConfig
from emollama.datasets.feature_clips import FeatureClips
from emollama.paths import join


class DFEW(FeatureClips):
    """The dataset of a ``dfew`` block. Only the task ``emotion`` has reference answers."""

    Config = DFEWConfig

    cfg: DFEWConfig

    def read_table(self) -> Table:
        """Read the table of the fold and pad the clip names."""
        path, clips = self.list_path(), dict[str, Clip]()
        for clip in read_clip_table(path, "label", self.report, self.list_key):
            name = padded_name(clip.name, self.cfg.zero_pad)
            if name in clips:
                text = f"clip '{clip.name}' is '{name}', which is already listed on line {clips[name].line}. Remove one of them."
                self.report(Problem("list", f"{path}, line {clip.line}: {text}", (name,)))
            else:
                clips[name] = dataclasses.replace(clip, name=name)
        return Table(list(clips.values()))

    def list_path(self) -> str:
        """Return the path of the fold's table, relative to the current directory."""
        split = self.cfg.split if self.cfg.split != "auto" else "train" if self.training else "test"
        return join(self.cfg.data_root, self.cfg.annotation_file.replace("{fold}", str(self.cfg.fold)).replace("{split}", split))

    def resolve_path(self, path: str) -> str:
        """Resolve a path that starts at ``data_root``, because the five folds share their features."""
        return join(self.cfg.data_root, path)

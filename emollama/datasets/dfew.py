"""DFEW: seven emotions by number, five folds, a CSV a fold and split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from emollama.data.clips import DFEW_LABELS, Clip, Table, read_clip_table
from emollama.data.problems import Problem
from emollama.datasets.clip_config import ClipConfig
from emollama.datasets.feature_clips import FeatureClips
from emollama.paths import join
from emollama.registry import DATASETS


@DATASETS.register("dfew")
class DFEW(FeatureClips):
    """The dataset behind a ``dfew`` block. Only the task ``emotion`` has answers."""

    @dataclass
    class Config(ClipConfig):
        """Keys of a ``dfew`` block; ``--options datasets.dfew.fold=2`` chooses the fold. All paths start at ``data_root``."""

        fold: int = 1
        """Which of the five folds."""
        split: Literal["auto", "train", "test"] = "auto"
        """auto: train under datasets, test under evaluation_datasets."""
        annotation_file: str = "{split}(single-labeled)/set_{fold}.csv"
        """The fold's table, video_name,label; {split} and {fold} are filled in."""
        zero_pad: int = 5
        """Digits that clip names are filled up to with zeros (1 -> 00001), as feature files are called. 0: as written."""
        labels: list[str] = field(default_factory=lambda: list(DFEW_LABELS.values()))
        """Labels that clips may have."""
        label_map: dict[str, str] = field(default_factory=lambda: dict(DFEW_LABELS))
        """Label in the file -> label here. Labels that it does not name stay as they are."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 <= self.fold <= 5:
                raise ValueError(f"fold is {self.fold}; DFEW has the folds 1 to 5")

    cfg: Config

    def read_table(self) -> Table:
        """The fold's table."""
        path, clips = self.list_path(), dict[str, Clip]()
        for clip in read_clip_table(path, "label", self.report):
            name = clip.name.zfill(self.cfg.zero_pad)
            if name in clips:
                text = f"clip '{clip.name}' is '{name}', which stands on line {clips[name].line} already. Remove one of the two."
                self.report(Problem("list", f"{path}, line {clip.line}: {text}", (name,)))
            else:
                clips[name] = dataclasses.replace(clip, name=name)
        return Table(list(clips.values()))

    def list_path(self) -> str:
        """The fold's table, seen from the current directory."""
        split = self.cfg.split if self.cfg.split != "auto" else "train" if self.training else "test"
        return join(self.cfg.data_root, self.cfg.annotation_file.replace("{fold}", str(self.cfg.fold)).replace("{split}", split))

    def beside_list(self, path: str) -> str:
        """A path that starts at ``data_root``: the five folds share their features."""
        return join(self.cfg.data_root, path)

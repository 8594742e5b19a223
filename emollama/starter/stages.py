"""The stages of training: which run writes the checkpoint that another configuration starts from.

The configurations of one data folder fit each other: a stage's run has a name (``run.job_id``), and what follows it names the
checkpoint in that run's folder, whether it exists yet or not.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emollama.errors import UserError
from emollama.paths import packaged_copy, read_text
from emollama.starter import models
from emollama.starter.draft import Draft
from emollama.starter.models import WeightFile
from emollama.starter.yaml_text import INTERPOLATION, unescaped

JOBS = {"stage1": "stage_1", "stage2": "stage_2"}  # kind -> the usual name of its run
PATTERNS = {  # kind -> names that its checkpoint may have elsewhere, the best first
    "stage1": ("stage_1.pth", "*stage_1*.pth", "*stage1*.pth", "checkpoint_best.pth", "checkpoint_*.pth"),
    "stage2": ("stage_2.pth", "*stage_2*.pth", "*stage2*.pth", "*motion*.pth", "checkpoint_best.pth", "checkpoint_*.pth"),
}
SHIPPED = {  # kind -> the shipped configuration for data, and the one for the folder of `emollama demo`
    "stage1": ("train_configs/Emotion-LLaMA_finetune.yaml", "train_configs/demo_stage_1.yaml"),
    "stage2": ("train_configs/minigptv2_tuning_stage_2.yaml", "train_configs/demo_stage_2.yaml"),
}


@dataclass(frozen=True)
class StageRun:
    """The training run of a stage.

    Attributes:
        kind: stage1 or stage2.
        checkpoint: as a configuration names it: the one that the run has, else the one that it will end with.
        trained: whether that file exists.
        written: whether the stage's configuration exists beside the file that is being written.
    """

    kind: str
    checkpoint: str
    trained: bool
    written: bool

    @classmethod
    def of(cls, draft: Draft, kind: str) -> StageRun:
        """The run of the stage's configuration beside the new file; without one, of the configuration that would be written."""
        own = written_file(draft, kind)
        run = (own or _read(packaged_copy(SHIPPED[kind][draft.is_demo])))["run"]
        output, job = draft.located(run["output_dir"]), run.get("job_id")
        if own is None:
            job = _newest_run(draft, output, JOBS[kind]) or free_job_id(output, JOBS[kind])
        last = "checkpoint_best.pth" if run.get("save_best") else f"checkpoint_{int(run.get('max_epoch', 1)) - 1}.pth"
        name = _existing(output / job, last)
        return cls(kind, f"{run['output_dir']}/{job}/{name or last}", name is not None, own is not None)


def name_run(draft: Draft, kind: str) -> None:
    """Give a stage's run a name under which the next stage finds its checkpoint."""
    job = free_job_id(draft.located(draft.text.get("run.output_dir")), JOBS[kind])
    draft.text.set("run.job_id", job, "the run's folder in output_dir, where the next stage looks")


def start_from(draft: Draft, kinds: Sequence[str]) -> None:
    """Set ``model.ckpt`` to the checkpoint of a stage.

    Args:
        draft: its data is filled in already.
        kinds: of the stages that suit, the best first. The first one is trained where no checkpoint exists.
    """
    file = WeightFile("model.ckpt", PATTERNS[kinds[0]], "")
    runs = [StageRun.of(draft, kind) for kind in kinds]
    first, suitable = runs[0], runs[:1] if runs[0].written else runs
    trained = next((run for run in suitable if run.trained), None)
    if trained is not None:
        size = draft.located(trained.checkpoint).stat().st_size / 2**20
        draft.have(file.key, trained.checkpoint, f"{size:,.0f} MiB, a checkpoint of {trained.kind}")
        return
    if not (first.written or draft.is_demo) and (place := models.find(draft, file, _suits(draft, kinds))) is not None:
        models.have_weights(draft, file, place)
        return
    path = draft.beside / f"{first.kind}.yaml"
    writes = f"'emollama train --cfg-path {path}' writes it"
    if path.exists() and not first.written:
        writes = f"{path} is for other data or has no run.job_id: write one by emollama init {first.kind} --output FILE"
    draft.lack(
        file.key, "no such file yet", f"{writes}, or name another checkpoint by --options {file.key}=FILE", first.checkpoint
    )
    draft.stages.append(first.kind)


def written_file(draft: Draft, kind: str) -> dict[str, Any] | None:
    """A stage's configuration that ``emollama init`` wrote beside the new file for the same folder; None if there is none."""
    found = _read(draft.beside / f"{kind}.yaml")
    run, paths = found.get("run"), found.get("paths")
    if not isinstance(run, dict) or not isinstance(paths, dict) or unescaped(str(paths.get("root"))) != str(draft.root):
        return None
    return found if isinstance(run.get("job_id"), str) and isinstance(run.get("output_dir"), str) else None


def free_job_id(output: Path, job: str) -> str:
    """A name for a run whose folder has no checkpoints: that name, else that name with a number."""
    names = itertools.chain([job], (f"{job}_{number}" for number in itertools.count(2)))
    return next(name for name in names if not any((output / name).glob("checkpoint_*.pth")))


def _newest_run(draft: Draft, output: Path, job: str) -> str | None:
    """The run of this data folder that has the newest checkpoint, of those with a stage's name."""
    newest: dict[str, int] = {}
    for path in output.glob(f"{job}*/checkpoint_*.pth"):
        folder = path.parent
        if re.fullmatch(rf"{job}(_\d+)?", folder.name) and not _of_other_data(draft, folder):
            newest[folder.name] = max(newest.get(folder.name, 0), path.stat().st_mtime_ns)
    return max(newest, key=lambda name: newest[name], default=None)


def _of_other_data(draft: Draft, folder: Path) -> bool:
    """Whether a run's config.yaml names another ``paths.root``."""
    paths = _read(folder / "config.yaml").get("paths")
    root = paths.get("root") if isinstance(paths, dict) else None
    return isinstance(root, str) and not INTERPOLATION.search(root) and draft.located(root) != draft.root


def _existing(folder: Path, last: str) -> str | None:
    """The checkpoint that a run ends with; before its end, the best one or that of the newest epoch."""
    names = {path.name for path in folder.glob("checkpoint_*.pth")}
    epochs = sorted((name for name in names if re.fullmatch(r"checkpoint_\d+\.pth", name)), key=lambda name: (len(name), name))
    return next((name for name in (last, "checkpoint_best.pth", *reversed(epochs), "checkpoint_last.pth") if name in names), None)


def _suits(draft: Draft, kinds: Sequence[str]) -> Callable[[Path], bool]:
    """Whether the path of a checkpoint names one of these stages or none."""

    def suits(path: Path) -> bool:
        found = re.findall(r"stage[_-]?([12])(?!\d)", os.path.relpath(path, draft.root), re.IGNORECASE)
        return not found or f"stage{found[-1]}" in kinds

    return suits


def _read(path: Path | None) -> dict[str, Any]:
    """The content of a YAML file; empty where there is none that can be read."""
    try:
        found = yaml.safe_load(read_text(str(path))) if path is not None and path.is_file() else None
    except (OSError, UserError, yaml.YAMLError):
        found = None
    return found if isinstance(found, dict) else {}

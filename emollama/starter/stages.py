"""Training stages: find the run that writes the checkpoint that another configuration starts from.

The configurations for one data folder refer to each other. The run of a stage has a name (``run.job_id``), and the
configuration of the next stage contains the path of its checkpoint, even if the checkpoint does not exist yet.
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
PATTERNS = {  # kind -> glob patterns of its checkpoint outside the run's folder, best first
    "stage1": ("stage_1.pth", "*stage_1*.pth", "*stage1*.pth", "checkpoint_best.pth", "checkpoint_*.pth"),
    "stage2": ("stage_2.pth", "*stage_2*.pth", "*stage2*.pth", "*motion*.pth", "checkpoint_best.pth", "checkpoint_*.pth"),
}
SHIPPED = {  # kind -> shipped configuration for real data, shipped configuration for `emollama demo`
    "stage1": ("train_configs/Emotion-LLaMA_finetune.yaml", "train_configs/demo_stage_1.yaml"),
    "stage2": ("train_configs/minigptv2_tuning_stage_2.yaml", "train_configs/demo_stage_2.yaml"),
}


@dataclass(frozen=True)
class StageRun:
    """The training run of a stage.

    Attributes:
        kind: ``stage1`` or ``stage2``.
        checkpoint: path of its checkpoint as written in a configuration. Before the run has one: of its last checkpoint.
        trained: True if this checkpoint exists.
        has_config: True if the stage's configuration exists next to the file that is being written.
    """

    kind: str
    checkpoint: str
    trained: bool
    has_config: bool

    @classmethod
    def of(cls, draft: Draft, kind: str) -> StageRun:
        """Return the run of the existing configuration of a stage, or of the configuration that ``init`` would write."""
        own = existing_config(draft, kind)
        run = (own or _read(packaged_copy(SHIPPED[kind][draft.is_demo])))["run"]
        output, job = draft.resolve(run["output_dir"]), run.get("job_id")
        if own is None:
            job = _newest_run(draft, output, JOBS[kind]) or free_job_id(output, JOBS[kind])
        last = "checkpoint_best.pth" if run.get("save_best") else f"checkpoint_{int(run.get('max_epoch', 1)) - 1}.pth"
        name = _existing(output / job, last)
        return cls(kind, f"{run['output_dir']}/{job}/{name or last}", name is not None, own is not None)


def name_run(draft: Draft, kind: str) -> None:
    """Set ``run.job_id`` of a stage, so that the path of its checkpoint is known to the next stage."""
    job = free_job_id(draft.resolve(draft.text.get("run.output_dir")), JOBS[kind])
    draft.text.set("run.job_id", job, "folder of this run in output_dir; the next stage reads its checkpoint")


def start_from(draft: Draft, kinds: Sequence[str]) -> None:
    """Set ``model.ckpt`` to the checkpoint of a stage.

    Args:
        draft: the configuration, with its dataset blocks already filled in.
        kinds: the suitable stages, best first. If no checkpoint exists, the first one must be trained.
    """
    file = WeightFile("model.ckpt", PATTERNS[kinds[0]], "")
    runs = [StageRun.of(draft, kind) for kind in kinds]
    first, suitable = runs[0], runs[:1] if runs[0].has_config else runs
    trained = next((run for run in suitable if run.trained), None)
    if trained is not None:
        size = draft.resolve(trained.checkpoint).stat().st_size / 2**20
        draft.set_found(file.key, trained.checkpoint, f"{size:,.0f} MiB, a checkpoint of {trained.kind}")
        return
    may_search = not (first.has_config or draft.is_demo)
    if may_search and (path := models.find_weights(draft, file, _suits(draft, kinds))) is not None:
        models.set_weights(draft, file, path)
        return
    config_file = draft.output_folder / f"{first.kind}.yaml"
    remedy = f"'emollama train --cfg-path {config_file}' writes it"
    if config_file.exists() and not first.has_config:
        remedy = f"{config_file} is for other data or has no run.job_id: run emollama init {first.kind} --output FILE"
    remedy += f", or select another checkpoint with --options {file.key}=FILE"
    draft.mark_missing(file.key, "no such file yet", remedy, first.checkpoint)
    draft.stages.append(first.kind)


def existing_config(draft: Draft, kind: str) -> dict[str, Any] | None:
    """Read the configuration of a stage that ``emollama init`` wrote for this data folder next to the new file.

    Returns:
        Its content; None if it does not exist, is for another folder, or has no ``run.job_id`` or ``run.output_dir``.
    """
    content = _read(draft.output_folder / f"{kind}.yaml")
    run, paths = content.get("run"), content.get("paths")
    if not isinstance(run, dict) or not isinstance(paths, dict) or unescaped(str(paths.get("root"))) != str(draft.root):
        return None
    return content if isinstance(run.get("job_id"), str) and isinstance(run.get("output_dir"), str) else None


def free_job_id(output: Path, job: str) -> str:
    """Return a run name whose folder contains no checkpoints: ``job``, or ``job`` with a number."""
    names = itertools.chain([job], (f"{job}_{number}" for number in itertools.count(2)))
    return next(name for name in names if not any((output / name).glob("checkpoint_*.pth")))


def _newest_run(draft: Draft, output: Path, job: str) -> str | None:
    """Return the name of the stage's run on this data folder with the newest checkpoint; None if no run has one."""
    newest: dict[str, int] = {}
    for path in output.glob(f"{job}*/checkpoint_*.pth"):
        folder = path.parent
        if re.fullmatch(rf"{job}(_\d+)?", folder.name) and not _of_other_data(draft, folder):
            newest[folder.name] = max(newest.get(folder.name, 0), path.stat().st_mtime_ns)
    return max(newest, key=lambda name: newest[name], default=None)


def _of_other_data(draft: Draft, folder: Path) -> bool:
    """Whether ``paths.root`` in the config.yaml of a run is another folder."""
    paths = _read(folder / "config.yaml").get("paths")
    root = paths.get("root") if isinstance(paths, dict) else None
    return isinstance(root, str) and not INTERPOLATION.search(root) and draft.resolve(root) != draft.root


def _existing(folder: Path, last: str) -> str | None:
    """Return the last checkpoint of a run; if it does not exist, the best one, that of the newest epoch, or checkpoint_last."""
    names = {path.name for path in folder.glob("checkpoint_*.pth")}
    epochs = sorted((name for name in names if re.fullmatch(r"checkpoint_\d+\.pth", name)), key=lambda name: (len(name), name))
    return next((name for name in (last, "checkpoint_best.pth", *reversed(epochs), "checkpoint_last.pth") if name in names), None)


def _suits(draft: Draft, kinds: Sequence[str]) -> Callable[[Path], bool]:
    """Return a test for paths of checkpoints: the path contains the name of one of these stages, or of no stage."""

    def suits(path: Path) -> bool:
        stages = re.findall(r"stage[_-]?([12])(?!\d)", os.path.relpath(path, draft.root), re.IGNORECASE)
        return not stages or f"stage{stages[-1]}" in kinds

    return suits


def _read(path: Path | None) -> dict[str, Any]:
    """Read a YAML file; return an empty mapping if it does not exist or cannot be read."""
    try:
        content = yaml.safe_load(read_text(str(path))) if path is not None and path.is_file() else None
    except (OSError, UserError, yaml.YAMLError):
        content = None
    return content if isinstance(content, dict) else {}

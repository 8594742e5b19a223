"""The checkpoints in the folder of a training run: which are saved when, and which one a run resumes from."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emollama import checkpoint
from emollama.distributed.process_group import World


class RunCheckpoints:
    """Saves the checkpoints of a training run. Every rank calls all methods.

    Args:
        cfg: the ``run`` block.
        folder: folder of the run.
        world: the processes; rank 0 writes.
        content: returns the content of a checkpoint after this number of steps.
        saved_step: the step of the checkpoint from which the run was resumed, or None.
    """

    def __init__(
        self, cfg: Any, folder: Path, world: World, content: Callable[[int], dict[str, Any]], saved_step: int | None
    ) -> None:
        self._cfg, self._folder, self._world = cfg, folder, world
        self._content, self._saved_step = content, saved_step

    def save(self, name: str, completed_steps: int) -> None:
        """Save a checkpoint after this number of steps."""
        content = self._content(completed_steps)
        self._world.on_rank_zero(lambda: checkpoint.save(self._folder / name, content))
        self._saved_step = completed_steps

    def maybe_save(self, completed_steps: int) -> None:
        """Save checkpoint_<epoch>.pth at the end of an epoch, and checkpoint_last.pth every ``save_every_iters`` steps."""
        cfg = self._cfg
        if completed_steps % cfg.iters_per_epoch == 0:
            self.save(f"checkpoint_{completed_steps // cfg.iters_per_epoch - 1}.pth", completed_steps)
            if cfg.keep_last:
                self._world.on_rank_zero(partial(drop_old, self._folder, cfg.keep_last))
        elif cfg.save_every_iters and completed_steps % cfg.save_every_iters == 0:
            self.save(checkpoint.LAST, completed_steps)

    def save_if_new(self, completed_steps: int) -> None:
        """Save checkpoint_last.pth unless there is a checkpoint of this step."""
        if self._saved_step != completed_steps:
            self.save(checkpoint.LAST, completed_steps)


def newest(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the checkpoint with the highest step in a run's folder, and why other files cannot be used.

    A checkpoint without a digest can be used, because copying a run often leaves the digests behind.

    Returns:
        The checkpoint, or None, and path -> problem for files that cannot be read and for damaged checkpoints of later steps.
    """
    steps = {path: step_of(path) for path in sorted(folder.glob("checkpoint_*.pth"))}
    problems = {path: "it is truncated, or contains no step of a run" for path, step in steps.items() if step < 0}
    for path in sorted(steps.keys() - problems.keys(), key=lambda path: (-steps[path], path.name == checkpoint.BEST)):
        if checkpoint.is_intact(path) is not False:
            return path, problems
        problems[path] = checkpoint.damage(path).rstrip(".")
    return None, problems


def step_of(path: Path) -> int:
    """Return a checkpoint's step without reading its tensors, or -1 if the file does not exist or cannot be read."""
    try:
        return int(torch.load(path, map_location="meta", weights_only=True, mmap=True)["step"])
    except Exception:  # torch.load raises many types of exceptions for damaged files and files of other programs
        return -1


def drop_old(folder: Path, keep_last: int) -> None:
    """Delete all but the newest ``keep_last`` epoch checkpoints, but never the best and the last checkpoint."""
    epochs = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"checkpoint_(\d+)\.pth", path.name))}
    for epoch in sorted(epochs)[: -keep_last or None]:
        epochs[epoch].unlink()
        checkpoint.digest_path(epochs[epoch]).unlink(missing_ok=True)

"""The checkpoints in the folder of a training run: which are saved when, and which one a run resumes from."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emollama import checkpoint, disk
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.logs.logger import get_logger


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
        self._unsaved: set[str] = set()  # checkpoints that did not fit on the disk

    def save(self, name: str, completed_steps: int) -> bool:
        """Save a checkpoint after this number of steps. If checkpoint_best.pth does not fit on the disk, it is saved later.

        Returns:
            Whether it was saved.
        """
        content, path = self._content(completed_steps), self._folder / name
        if name == checkpoint.BEST:
            self._best = self._folder / f"checkpoint_{completed_steps // self._cfg.iters_per_epoch - 1}.pth"
            return self._try(name, lambda: checkpoint.save(path, content))
        self._world.on_rank_zero(lambda: checkpoint.save(path, content))
        self._unsaved.discard(checkpoint.LAST)
        self._saved_step = completed_steps
        return True

    def maybe_save(self, completed_steps: int) -> None:
        """Save checkpoint_<epoch>.pth at the end of an epoch, and checkpoint_last.pth every ``save_every_iters`` steps.

        A checkpoint_last.pth or checkpoint_best.pth that did not fit on the disk is saved now if there is space.
        """
        cfg = self._cfg
        if checkpoint.BEST in self._unsaved:
            self._try(checkpoint.BEST, self._copy_best)
        if completed_steps % cfg.iters_per_epoch == 0:
            self.save(f"checkpoint_{completed_steps // cfg.iters_per_epoch - 1}.pth", completed_steps)
            if cfg.keep_last and checkpoint.BEST not in self._unsaved:
                self._world.on_rank_zero(partial(drop_old, self._folder, cfg.keep_last))
        elif checkpoint.LAST in self._unsaved or (cfg.save_every_iters and completed_steps % cfg.save_every_iters == 0):
            content = self._content(completed_steps)
            if self._try(checkpoint.LAST, lambda: checkpoint.save(self._folder / checkpoint.LAST, content)):
                self._saved_step = completed_steps

    def save_if_new(self, completed_steps: int) -> None:
        """Save checkpoint_last.pth unless there is a checkpoint of this step."""
        if self._saved_step != completed_steps:
            self.save(checkpoint.LAST, completed_steps)

    def _copy_best(self) -> None:
        # A resumed run has no checkpoint of an epoch after which it was stopped.
        if self._best.exists():
            checkpoint.copy(self._best, self._folder / checkpoint.BEST)

    def _try(self, name: str, write: Callable[[], None]) -> bool:
        """Write a checkpoint on rank 0, or warn if the disk is full. Returns on every rank whether it was written."""

        def written() -> bool:
            try:
                write()
            except UserError as error:
                if not disk.is_full(error):
                    raise
                if name not in self._unsaved:
                    get_logger().warning("%s Training continues, and the next steps try again.", error)
                return False
            return True

        saved = self._world.on_rank_zero(written)
        self._unsaved = self._unsaved - {name} if saved else self._unsaved | {name}
        return saved


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

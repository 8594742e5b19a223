"""The checkpoints in the folder of a training run: which are saved when, and which one a run resumes from."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from emollama import checkpoint, disk, file_digests
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.logs.logger import get_logger
from emollama.run_folder import CONFIG, LOG

T = TypeVar("T")


class RunCheckpoints:
    """Saves the checkpoints of a training run. Every rank calls all methods.

    Args:
        cfg: the ``run`` block.
        folder: folder of the run.
        world: the processes; rank 0 writes.
        content: returns the content of a checkpoint after this number of steps.
        resumed_from: the checkpoint from which the run was resumed, or None.
    """

    def __init__(
        self, cfg: Any, folder: Path, world: World, content: Callable[[int], dict[str, Any]], resumed_from: str | None
    ) -> None:
        self._cfg, self._folder, self._world, self._content = cfg, folder, world, content
        self._unsaved: set[str] = set()  # checkpoints that did not fit on the disk
        self._saved_step = world.on_rank_zero(lambda: self._step_in_folder(resumed_from)) if resumed_from else None

    def _step_in_folder(self, resumed_from: str) -> int | None:
        """Return the step of the checkpoint from which the run was resumed, and move those of later steps away.

        A checkpoint in another folder is not one of this run, whose folder must have a checkpoint when it stops.
        """
        path = Path(resumed_from)
        if path.resolve().parent != self._folder.resolve():
            return None
        step = step_of(path)
        if self._cfg.resume_ckpt_path != "auto":
            set_aside_later(self._folder, step)
        return step

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


def content_to_resume(configured: str | None, folder: Path) -> dict[str, Any] | None:
    """Read the checkpoint from which a run starts; None for a new run.

    Args:
        configured: ``run.resume_ckpt_path``.
        folder: the folder of the run.

    Returns:
        The content of the checkpoint, with its ``path``.

    Raises:
        UserError: If the folder contains another run, checkpoints that ``auto`` cannot use, or a damaged file is configured.
    """
    if configured != "auto":
        resumes_it = configured is not None and Path(configured).resolve().parent == folder.resolve()
        log = folder / LOG
        # A run that was resumed from another folder, and was killed before it saved, is started again by the same command.
        has_log = configured is None and log.is_file() and log.stat().st_size > 0
        if not resumes_it and (has_log or any(folder.glob("checkpoint_*.pth"))):
            raise UserError(
                f"{folder} contains another run. Resume it with --options run.resume_ckpt_path=auto, or choose another run.job_id"
                " for this run."
            )
        return None if configured is None else read_to_resume(configured)
    content, problems = newest(folder)
    if content is None and problems:
        reasons = abbreviated((f"{skipped.name}: {problem}" for skipped, problem in problems.items()), "; ")
        raise UserError(
            f"run.resume_ckpt_path: auto: no checkpoint in {folder} can be used ({reasons}). Copy a checkpoint of this run there,"
            " or choose another run.job_id to start a new run."
        )
    for skipped, problem in problems.items():
        get_logger().warning("%s is skipped: %s", skipped, problem)
    if content is None:
        _require_own_start(folder)
        get_logger().info("resume_ckpt_path: auto: no checkpoint in %s, starting a new run", folder)
        return None
    path = content["path"]
    if not os.path.lexists(file_digests.digest_path(path)):
        text = "%s has no digest (%s), so it is unknown whether it was changed after it was saved"
        get_logger().warning(text, path, file_digests.digest_path(path).name)
    get_logger().info("resume_ckpt_path: auto: resuming from %s", path)
    return content


def read_to_resume(path: str | Path) -> dict[str, Any]:
    """Read the checkpoint from which a run continues, and add its ``path``."""
    return checkpoint.read(str(path), "run.resume_ckpt_path") | {"path": str(path)}


def _require_own_start(folder: Path) -> None:
    """Check that the run in a folder without checkpoints did not resume from another folder.

    Raises:
        UserError: If it did.
    """
    try:
        stored = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["run"]["resume_ckpt_path"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return
    if stored not in (None, "auto"):
        raise UserError(
            f"run.resume_ckpt_path: auto: the run in {folder} was resumed from {stored}, and has saved no checkpoint since. Set"
            f" run.resume_ckpt_path={stored} to continue from there."
        )


def newest(folder: Path) -> tuple[dict[str, Any] | None, dict[Path, str]]:
    """Read the checkpoint with the highest step in a run's folder, and return why other files cannot be used.

    A checkpoint without a digest can be used, because copying a run often leaves the digests behind.

    Returns:
        The content with its ``path``, or None, and path -> problem for files that cannot be read and for damaged checkpoints of
        later steps.
    """
    return _newest_of(folder.glob("checkpoint_*.pth"), read_to_resume)


def best_or_newest(folder: Path) -> Path:
    """Return checkpoint_best.pth of a run, or the checkpoint with the highest step if there is none.

    Raises:
        UserError: If the folder has no checkpoint, or it cannot be used. No other checkpoint replaces a damaged one.
    """
    best = folder / checkpoint.BEST
    path, problems = _newest_of([best] if best.is_file() else folder.glob("checkpoint_*.pth"), _intact)
    if problems:
        reasons = abbreviated((f"{damaged.name}: {problem}" for damaged, problem in problems.items()), "; ")
        raise UserError(f"{folder}: {reasons}. Copy the file again, or specify the checkpoint to use.")
    if path is None:
        raise UserError(f"{folder} contains no checkpoint. Train first, or specify the checkpoint to use.")
    return path


def _intact(path: Path) -> Path:
    file_digests.require_intact(path)
    return path


def _newest_of(paths: Iterable[Path], use: Callable[[Path], T]) -> tuple[T | None, dict[Path, str]]:
    """Call a function with the checkpoint of the highest step, and with the next one if it raises a DamagedError."""
    steps = {path: step_of(path) for path in sorted(paths)}
    problems = {path: "it is truncated, or contains no step of a run" for path, step in steps.items() if step < 0}
    for path in sorted(steps.keys() - problems.keys(), key=lambda path: (-steps[path], path.name == checkpoint.BEST)):
        try:
            return use(path), problems
        except file_digests.DamagedError as error:
            problems[path] = error.problem.rstrip(".")
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
        file_digests.digest_path(epochs[epoch]).unlink(missing_ok=True)


def set_aside_later(folder: Path, step: int) -> None:
    """Move the checkpoints of later steps to the folder ``superseded``, when a run is resumed from an earlier one.

    Otherwise, the next resumption would continue from them.
    """
    for path in sorted(folder.glob("checkpoint_*.pth")):
        if step_of(path) > step:
            target = folder / "superseded"
            target.mkdir(exist_ok=True)
            number = next(number for number in itertools.count(1) if not (target / f"{number}_{path.name}").exists())
            for file in (file_digests.digest_path(path), path):
                if file.exists():
                    file.rename(target / f"{number}_{file.name}")
            get_logger().info("%s was moved to %s, because this run resumes from an earlier step", path.name, target)

"""The checkpoints in the folder of a training run: which one a run resumes from, and which are old."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from emollama import checkpoint, checkpoint_parts, file_digests, optim
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.logs.logger import get_logger
from emollama.run_folder import CONFIG, LOG

T = TypeVar("T")
NO_STEP = "it is truncated, or contains no step of a run"  # what is wrong with a file


def configured_content(configured: str | None, folder: Path, *, check_parts: bool = True) -> dict[str, Any] | None:
    """Read the checkpoint from which a run starts; None for a new run.

    Args:
        configured: ``run.resume_ckpt_path``, unless it is ``auto``.
        folder: the folder of the run.
        check_parts: as in :func:`read_to_resume`.

    Returns:
        The content of the checkpoint, with its ``path``.

    Raises:
        UserError: If the folder contains another run, or the file cannot be used.
    """
    resumes_it = configured is not None and Path(configured).resolve().parent == folder.resolve()
    log = folder / LOG
    # A run that was resumed from another folder, and was killed before it saved, is started again by the same command.
    has_log = configured is None and log.is_file() and log.stat().st_size > 0
    if not resumes_it and (has_log or any(folder.glob("checkpoint_*.pth"))):
        raise UserError(
            f"{folder} contains another run. Resume it with --options run.resume_ckpt_path=auto, or choose another run.job_id"
            " for this run."
        )
    return None if configured is None else read_to_resume(configured, check_parts=check_parts)


def read_to_resume(path: str | Path, *, check_parts: bool = True) -> dict[str, Any]:
    """Read the checkpoint from which a run continues, and add its ``path``.

    Args:
        path: the checkpoint. If it is sharded, its values are not read.
        check_parts: check the parts of a sharded checkpoint. With several nodes, they can be on other ones.
    """
    key = "run.resume_ckpt_path"
    content = checkpoint.read(str(path), key, values=False)
    if check_parts and (parts := checkpoint_parts.parts_of(content, path)):
        parts.require_intact(key)
    return content | {"path": str(path)}


def resume_optimizer(optimizer: torch.optim.AdamW, content: dict[str, Any]) -> None:
    """Load the state of the optimizer from the checkpoint from which a run continues."""
    optim.load_state(optimizer, content["optimizer"])
    if parts := checkpoint_parts.parts_of(content, content["path"]):
        parts.fill(content, {"optimizer": optimizer.state_dict()})


def require_own_start(folder: Path) -> None:
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


def newest(
    folder: Path, problems: dict[Path, str], *, step: int | None = None, check_parts: bool = True
) -> dict[str, Any] | None:
    """Read the checkpoint with the highest step in a run's folder, unless it cannot be used.

    A checkpoint without a digest can be used, because copying a run often leaves the digests behind.

    Args:
        folder: the folder of the run.
        problems: path -> why a file cannot be used. Those files are not read. This function adds files that cannot be read, and
            damaged checkpoints of later steps.
        step: read only checkpoints of this step, if it is not None.
        check_parts: as in :func:`read_to_resume`.

    Returns:
        The content with its ``path``, or None.
    """
    paths = [path for path in folder.glob("checkpoint_*.pth") if path not in problems and step in (None, step_of(path))]
    content, others = _newest_of(paths, partial(read_to_resume, check_parts=check_parts))
    problems |= others
    if content is not None and not os.path.lexists(file_digests.digest_path(content["path"])):
        text = "%s has no digest (%s), so it is unknown whether it was changed after it was saved"
        get_logger().warning(text, content["path"], file_digests.digest_path(content["path"]).name)
    return content


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
    if step_of(path) >= 0 and (parts := checkpoint_parts.parts_of(checkpoint.read(str(path), "model.ckpt", values=False), path)):
        parts.require_intact("model.ckpt")
    return path


def _newest_of(paths: Iterable[Path], use: Callable[[Path], T]) -> tuple[T | None, dict[Path, str]]:
    """Call a function with the checkpoint of the highest step, and with the next one if it raises a DamagedError."""
    steps = {path: step_of(path) for path in sorted(paths)}
    problems = {path: NO_STEP for path, step in steps.items() if step < 0}
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


def folders_of_parts(folder: Path) -> set[str] | None:
    """Return the names of the folders to which the sharded checkpoints in a folder refer; None if a file cannot be read."""
    names = set()
    for path in folder.glob("*.pth"):  # a checkpoint may have been copied under another name
        try:
            content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
            if parts := checkpoint_parts.parts_of(content, path):
                names.add(parts.folder.name)
        except Exception:  # as in step_of
            return None
    return names


def drop_old(folder: Path, keep_last: int) -> None:
    """Delete all but the newest ``keep_last`` epoch checkpoints, but never the best and the last checkpoint."""
    epochs = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"checkpoint_(\d+)\.pth", path.name))}
    for epoch in sorted(epochs)[: -keep_last or None]:
        epochs[epoch].unlink()
        file_digests.digest_path(epochs[epoch]).unlink(missing_ok=True)


def has_later(folder: Path, step: int) -> bool:
    """Return whether a folder has a checkpoint of a later step."""
    return any(step_of(path) > step for path in folder.glob("checkpoint_*.pth"))


def set_aside_later(folder: Path, step: int) -> None:
    """Move checkpoints of later steps and their parts to the folder ``superseded``, when a run resumes from an earlier step.

    Otherwise, the next resumption would continue from them. Another node may have the checkpoint of parts in this folder.
    """
    target = folder / "superseded"
    for parts in checkpoint_parts.folders(folder):
        if int(parts.name.partition("-")[0]) > step:
            # An earlier resumption may have moved files of this name.
            (moved := target / checkpoint_parts.FOLDER / parts.name).mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another node has moved them, and the file system lists them a little longer
                for file in parts.iterdir():
                    file.replace(moved / file.name)
                parts.rmdir()
    for path in sorted(folder.glob("checkpoint_*.pth")):
        if step_of(path) > step:
            target.mkdir(exist_ok=True)
            number = next(number for number in itertools.count(1) if not (target / f"{number}_{path.name}").exists())
            for file in (file_digests.digest_path(path), path):
                if file.exists():
                    file.rename(target / f"{number}_{file.name}")
            get_logger().info("%s was moved to %s, because this run resumes from an earlier step", path.name, target)

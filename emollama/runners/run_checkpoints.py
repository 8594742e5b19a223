"""Saves the checkpoints of a training run: which are saved when, in the background or not."""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Callable, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from emollama import checkpoint, checkpoint_parts, disk
from emollama.checkpoint_parts import CheckpointPart
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.logs.logger import get_logger
from emollama.replaced_file import temporary_path
from emollama.runners import fetching
from emollama.runners.checkpoint_writer import CheckpointWriter
from emollama.runners.checkpoints import drop_old, folders_of_parts, has_later, set_aside_later, step_of


class _Save(NamedTuple):
    """A checkpoint that is being written: its name, and its number of completed steps; a full disk ends the run if required.

    For a sharded one, of which each process writes a part: its content without values, and the name of the folder of its parts.
    """

    name: str
    step: int
    required: bool
    content: dict[str, Any]
    parts_folder: str | None


def remove_interrupted(folder: Path, world: World, resumed: dict[str, Any] | None) -> None:
    """Delete what interrupted saves have left on the disk of each node, which can take the space of the next one.

    Every rank calls it.

    Args:
        folder: folder of the run.
        world: the processes.
        resumed: the content of the checkpoint to resume from, whose parts are still read; None for a new run.
    """
    if world.is_first:
        for path in folder.glob(temporary_path(Path("checkpoint_*.pth")).name):
            with suppress(OSError):  # another node has deleted it from a shared folder
                path.unlink()
        shutil.rmtree(folder / fetching.FOLDER, ignore_errors=True)
    parts = resumed and checkpoint_parts.parts_of(resumed, resumed["path"])
    _drop_old_parts(folder, world, {parts.folder.name} if parts else set())


def _drop_old_parts(folder: Path, world: World, needed: Set[str] = frozenset()) -> None:
    """Delete the parts of checkpoints that no longer exist on any node, except for folders of these names, on all nodes."""
    if not world.any(bool(checkpoint_parts.folders(folder))):
        return
    used = set(needed)
    for names in world.gather(folders_of_parts(folder) if world.is_first else set()):
        if names is None:  # a file cannot be read
            return
        used |= names
    if world.is_first:
        checkpoint_parts.remove_other_folders(folder, used)


class RunCheckpoints:
    """Saves the checkpoints of a training run. Every rank calls all methods.

    Unless ``run.async_save`` is False, a checkpoint is written while the next steps run. The next checkpoint, and the end of the
    run, wait for it, and an error ends the run at the step that finds it.

    If tensors of its content are divided among the processes, each process writes its part (:mod:`emollama.checkpoint_parts`).

    Args:
        cfg: the ``run`` block.
        folder: folder of the run.
        world: the processes; rank 0 writes.
        content: returns the content of a checkpoint after this number of steps.
        resumed: the content of the checkpoint from which the run was resumed, with its ``path``; None for a new run.
    """

    def __init__(
        self, cfg: Any, folder: Path, world: World, content: Callable[[int], dict[str, Any]], resumed: dict[str, Any] | None
    ) -> None:
        self._cfg, self._folder, self._world, self._content = cfg, folder, world, content
        self._writer = CheckpointWriter(in_background=cfg.async_save, device=world.device)
        self._writing: _Save | None = None
        self._unsaved: set[str] = set()  # checkpoints that did not fit on the disk
        self._saved_step: int | None = None  # of the last checkpoint in the folder
        if resumed is not None:
            self._set_aside_later(resumed["step"])
            # A checkpoint in another folder is not one of this run, whose folder must have a checkpoint when it stops.
            is_own = Path(resumed["path"]).resolve().parent == folder.resolve()
            self._saved_step = world.on_rank_zero(lambda: resumed["step"] if is_own else None)
        self._drop_old_parts()  # which were copied only to resume

    def _set_aside_later(self, step: int) -> None:
        """Move the checkpoints of later steps away on all nodes. With auto, they are damaged, but some files may be intact."""
        world = self._world
        if not world.any(world.is_first and has_later(self._folder, step)):
            return
        # One after the other, because nodes can share the folder.
        for first in range(world.size if world.several_nodes else 1):
            if world.nodes.is_first(first):
                world.on_rank(first, lambda: set_aside_later(self._folder, step))

    def maybe_save(self, completed_steps: int) -> None:
        """Save checkpoint_<epoch>.pth at the end of an epoch, and checkpoint_last.pth every ``save_every_iters`` steps.

        A checkpoint_last.pth or checkpoint_best.pth that did not fit on the disk is saved now if there is space.
        """
        cfg = self._cfg
        if self._writing and not self._world.any(not self._writer.is_done()):
            self.finish()
        if checkpoint.BEST in self._unsaved:
            self._save_best()
        retries = checkpoint.LAST in self._unsaved and not self._writing
        if completed_steps % cfg.iters_per_epoch == 0:
            self._start(self._path_of_epoch(completed_steps).name, completed_steps)
        elif retries or (cfg.save_every_iters and completed_steps % cfg.save_every_iters == 0):
            self._start(checkpoint.LAST, completed_steps, required=False)

    def save_best(self, completed_steps: int) -> bool | None:
        """Save checkpoint_best.pth. When this method returns, it is complete, or is saved later because the disk is full.

        It is a second name of the epoch's checkpoint, which was written during the evaluation. Only a run that was resumed from
        another folder may not have it.

        Returns:
            Whether it was saved; None if it cannot be saved later, because only this process has the weights.
        """
        self.finish()
        self._best = self._path_of_epoch(completed_steps)
        if self._world.on_rank_zero(lambda: step_of(self._best)) == completed_steps:
            return self._save_best()
        self._start(checkpoint.BEST, completed_steps, required=False)
        self.finish()
        if checkpoint.BEST not in self._unsaved:
            return True
        self._unsaved.discard(checkpoint.BEST)
        return None

    def save_if_new(self, completed_steps: int) -> None:
        """Save checkpoint_last.pth unless there is a checkpoint of this step. When this method returns, it is complete."""
        self.finish()
        if self._saved_step != completed_steps:
            self._start(checkpoint.LAST, completed_steps)
            self.finish()

    def finish_if_sharded(self) -> None:
        """Wait for a sharded checkpoint, which exists only when all ranks have agreed that their parts are complete.

        An evaluation, in which a run can be stopped, would otherwise lose it.
        """
        if self._writing is not None and self._writing.parts_folder is not None:
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is complete, and delete those that ``keep_last`` does not keep.

        Raises:
            UserError: If it could not be written and is not saved later.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        if writing.parts_folder is not None:
            if not self._complete_parts(writing, writing.parts_folder):
                return
        elif writing.required:
            self._world.on_rank_zero(self._writer.finish)
        elif not self._try(writing.name, self._writer.finish):
            return
        if writing.name == checkpoint.BEST:
            return
        self._unsaved.discard(checkpoint.LAST)
        self._saved_step = writing.step
        if writing.name != checkpoint.LAST and self._cfg.keep_last and checkpoint.BEST not in self._unsaved:
            self._world.on_rank_zero(partial(drop_old, self._folder, self._cfg.keep_last))
        if writing.parts_folder is not None:
            self._drop_old_parts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Wait until the checkpoint that is being written is complete, also when a run ends with an error."""
        if error is None:
            self.finish()
            return
        # The other ranks may have ended, and the error of the run must not be replaced.
        try:
            self._writer.finish()
        except Exception as unwritten:
            get_logger().error("%s", unwritten)

    def _start(self, name: str, completed_steps: int, *, required: bool = True) -> None:
        self.finish()
        content, sharded = checkpoint_parts.divided(self._content(completed_steps))
        parts_folder = None
        if sharded:
            # The files of an earlier checkpoint of the same step must stay intact until the new one is complete.
            parts_folder = self._world.on_rank_zero(lambda: f"{completed_steps}-{secrets.token_hex(4)}")
            path = self._folder / checkpoint_parts.FOLDER / parts_folder / checkpoint_parts.file_name(self._world.rank)
            self._writer.start_part(path, sharded, socket.gethostname())
        else:
            self._world.on_rank_zero(lambda: self._writer.start(self._folder / name, content))
        self._writing = _Save(name, completed_steps, required, content, parts_folder)
        if not self._cfg.async_save:
            self.finish()

    def _complete_parts(self, writing: _Save, folder: str) -> bool:
        """Write a sharded checkpoint when the files of all processes are complete. Returns whether they fitted on the disks."""

        def finished() -> CheckpointPart | str | None:
            try:
                return self._writer.finish()
            except UserError as error:
                text = f"{self._world.nodes.place(self._world.rank)}: {error}"
                if writing.required or not disk.is_full(error):
                    raise UserError(text) from error
                return text

        outcomes = self._world.on_all_ranks(finished)
        unwritten = [outcome for outcome in outcomes if isinstance(outcome, str)]
        parts = [outcome for outcome in outcomes if isinstance(outcome, CheckpointPart)]

        def write() -> None:
            if unwritten:
                raise UserError(unwritten[0]) from OSError(disk.FULL[0], "")  # as the process raised it whose disk is full
            content = writing.content | {checkpoint_parts.ENTRY: checkpoint_parts.entry(folder, parts)}
            checkpoint.save(self._folder / writing.name, content)

        if writing.required:
            self._world.on_rank_zero(write)
            return True
        if self._try(writing.name, write):
            return True
        self._drop_old_parts()
        return False

    def _drop_old_parts(self) -> None:
        _drop_old_parts(self._folder, self._world)

    def _path_of_epoch(self, completed_steps: int) -> Path:
        return self._folder / f"checkpoint_{completed_steps // self._cfg.iters_per_epoch - 1}.pth"

    def _save_best(self) -> bool:
        saved = self._try(checkpoint.BEST, self._link_best)
        self._drop_old_parts()  # of the former one
        return saved

    def _link_best(self) -> None:
        # A resumed run has no checkpoint of an epoch after which it was stopped.
        if self._best.exists():
            checkpoint.link(self._best, self._folder / checkpoint.BEST)

    def _try(self, name: str, write: Callable[[], object]) -> bool:
        """Write a checkpoint on rank 0, or warn if the disk is full. Returns on every rank whether it was written."""

        def written() -> bool:
            try:
                write()
            except UserError as error:
                if not disk.is_full(error):
                    raise
                again = "" if name == checkpoint.BEST and not self._best.exists() else ", and the next steps try again"
                if name not in self._unsaved:
                    get_logger().warning("%s Training continues%s.", error, again)
                return False
            return True

        saved = self._world.on_rank_zero(written)
        self._unsaved = self._unsaved - {name} if saved else self._unsaved | {name}
        return saved

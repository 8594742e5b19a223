"""Choose the checkpoint from which a run resumes, and make it available on all nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from emollama import checkpoint_parts
from emollama.checkpoint_parts import Parts, parts_of
from emollama.config import RunConfig
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.logs.logger import get_logger
from emollama.runners.checkpoints import NO_STEP, configured_content, newest, read_to_resume, require_own_start, step_of
from emollama.runners.fetching import copies_of_parts, on_all_nodes, provide_parts
from emollama.runners.resume import require_same_run

KEY = "run.resume_ckpt_path"


@dataclass(frozen=True)
class _Chosen:
    """A checkpoint to resume from.

    Attributes:
        path: its path on the node that has it.
        source: a rank on this node.
        path_here: its path on the node of this process, where it can be missing.
        content: what it contains, in the process that has read it; else None.
        parts: its files in the folder of this node, if it is sharded and there are several nodes; they can be on other nodes.
        copies: name of a part -> ranks on whose nodes it is intact.
    """

    path: str
    source: int
    path_here: str
    content: dict[str, Any] | None
    parts: Parts | None
    copies: dict[str, list[int]]

    def problem(self) -> str:
        """Return which part no node has; "" if there is none."""
        missing = [part for part in self.parts.files if not self.copies[part.name]] if self.parts else []
        return f"no node has an intact copy: {self.parts.missing(missing[0])}" if self.parts and missing else ""


def resume_content(
    config: RunConfig, folder: Path, fields: dict[str, Any], world: World, processes: int
) -> dict[str, Any] | None:
    """Return the content of the checkpoint to resume from, with its ``path``, or None for a new run.

    Args:
        config: the resolved configuration; ``run.resume_ckpt_path`` is a file, ``auto``, or None.
        folder: folder of the run, in which ``auto`` searches.
        fields: values that must be equal in the checkpoint (:func:`~emollama.runners.resume.run_fields`).
        world: the processes; one of them chooses the checkpoint, and every rank reads it once.
        processes: number of processes of the run. A dry run checks for this number, but is one process itself.

    Raises:
        UserError: If a new run would write into a folder with checkpoints, or the checkpoint belongs to a different run or cannot
            be used.
    """
    chosen = _choose(config.run.resume_ckpt_path, folder, world)
    if chosen is None:
        return None
    with on_all_nodes(chosen.path_here, folder, world, chosen.source) as local:

        def read() -> dict[str, Any]:
            content = chosen.content or read_to_resume(local, check_parts=False)
            require_same_run(content, config, fields, chosen.path, processes)
            return content

        content = world.rank_zero_first(read)
    if chosen.parts is not None:
        content[checkpoint_parts.ENTRY][checkpoint_parts.COPIED_TO] = str(chosen.parts.folder.parent)
        provide_parts(chosen.parts, chosen.copies, world)
    return content


def _choose(configured: str | None, folder: Path, world: World) -> _Chosen | None:
    """Return the checkpoint to resume from, or None for a new run.

    Raises:
        UserError: As for :func:`resume_content`.
    """
    if configured == "auto":
        return _newest(folder, world)
    read = partial(configured_content, configured, folder, check_parts=not world.several_nodes)
    chosen = _read_on(0, read, configured, folder, world)
    if chosen is not None and (problem := chosen.problem()):
        raise world.user_error(f"{KEY}: {problem}")
    return chosen


def _newest(folder: Path, world: World) -> _Chosen | None:
    """Return the usable checkpoint of the highest step on any node, and warn about others; None if there are none."""
    problems: dict[Path, str] = {}  # of checkpoints on this node
    read = partial(newest, folder, problems, check_parts=not world.several_nodes)
    while True:
        highest = _rank_with_newest(folder, world, problems)
        source, step = highest or (0, None)
        # If it is damaged, another node may have a newer one than the next one of this node.
        chosen = _read_on(source, partial(read, step=step), None, folder, world)
        if chosen is None and highest is not None:
            continue
        if chosen is None or not (problem := chosen.problem()):
            break
        if world.rank == chosen.source:
            problems[Path(chosen.path)] = problem
    skipped = [text for texts in world.gather([*problems.items()]) for text in texts]
    if chosen is None:
        world.on_rank_zero(lambda: _require_new_run(folder, skipped))
    elif world.is_main:
        for path, problem in skipped:
            get_logger().warning("%s is skipped: %s", path, problem)
        get_logger().info("resume_ckpt_path: auto: resuming from %s", chosen.path)
    return chosen


def _rank_with_newest(folder: Path, world: World, problems: dict[Path, str]) -> tuple[int, int] | None:
    """Return the rank whose node has the checkpoint of the highest step, and this step; None without one, or for one node.

    Args:
        folder: the folder of the run.
        world: the processes.
        problems: path -> problem of checkpoints on this node that cannot be used; this function adds files that cannot be read.
    """
    if not world.several_nodes:
        return None
    paths = [path for path in folder.glob("checkpoint_*.pth") if path not in problems] if world.is_first else []
    own = {path: step_of(path) for path in paths}
    problems |= {path: NO_STEP for path, step in own.items() if step < 0}
    steps = world.gather(max(own.values(), default=-1))
    return (steps.index(max(steps)), max(steps)) if max(steps) >= 0 else None


def _read_on(
    source: int, read: Callable[[], dict[str, Any] | None], configured: str | None, folder: Path, world: World
) -> _Chosen | None:
    """Read a checkpoint on one rank, and look for its parts on all nodes.

    Args:
        source: the rank.
        read: returns the content with its ``path``, or None if there is no checkpoint.
        configured: its path in the configuration; None if it is in the folder of the run, whose path can differ between nodes.
        folder: the folder of the run.
        world: the processes.
    """
    contents: list[dict[str, Any] | None] = [None]

    def describe() -> tuple[str, Parts | None] | None:
        content = contents[0] = read()
        return None if content is None else (content["path"], parts_of(content, content["path"]))

    description = world.on_rank(source, describe)
    if description is None:
        return None
    path, parts = description
    here = configured or str(folder / Path(path).name)
    if parts is None or not world.several_nodes:
        return _Chosen(path, source, here, contents[0], None, {})
    beside = Path(here).resolve().parent / checkpoint_parts.FOLDER / parts.folder.name
    # A node that has neither the checkpoint nor parts of it stores its copies of the parts in the folder of the run.
    place = beside if os.path.isfile(here) or beside.is_dir() else folder / checkpoint_parts.FOLDER / parts.folder.name
    parts = replace(parts, path=here, folder=place)
    return _Chosen(path, source, here, contents[0], parts, copies_of_parts(parts, world))


def _require_new_run(folder: Path, skipped: list[tuple[Path, str]]) -> None:
    """Check that a run without a usable checkpoint is a new one.

    Raises:
        UserError: If it is not.
    """
    if skipped:
        reasons = abbreviated((f"{path.name}: {problem}" for path, problem in skipped), "; ")
        raise UserError(
            f"run.resume_ckpt_path: auto: no checkpoint in {folder} can be used ({reasons}). Copy a checkpoint of this run there,"
            " or choose another run.job_id to start a new run."
        )
    require_own_start(folder)
    get_logger().info("resume_ckpt_path: auto: no checkpoint in %s, starting a new run", folder)

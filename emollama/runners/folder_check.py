"""Choose, lock and check the folder of a run before anything expensive starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emollama import disk
from emollama.components import Model
from emollama.config import RunConfig
from emollama.distributed.groups import group_size
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.folder_lock import FolderLock, new_run_folder
from emollama.logs.logger import get_logger
from emollama.memory import GIB
from emollama.optim import trainable
from emollama.paths import require_writable
from emollama.planning.disk import BYTES_PER_PARAMETER
from emollama.run_folder import CONFIG, EVALUATIONS, LOG, RESULT
from emollama.variables import JOB_ID

KEY = "run.output_dir"
# The files that training or an evaluation reads or replaces, as glob patterns.
FILES = (
    *(CONFIG, LOG, EVALUATIONS, "checkpoint_*.pth", "checkpoint_*.sha256", "wandb_id.txt"),
    *(f"{RESULT}/{name}" for name in (CONFIG, "metrics_*.json", "predictions_*")),
    *(f"{RESULT}/epoch_*/{name}" for name in ("metrics_*.json", "predictions_*")),
)


def lock_run_folder(run: Any, *, training: bool) -> tuple[Path, FolderLock]:
    """Choose the folder of a run, which is new if the run has no name, and lock what the run writes.

    Args:
        run: the ``run`` block.
        training: whether the run trains; an evaluation only writes the results in the folder.

    Returns:
        The folder of the run, and the lock.

    Raises:
        UserError: If the folder cannot be written, or another process has locked it.
    """
    created: list[Path] = []
    job_id = run.job_id or os.environ.get(JOB_ID)
    if not job_id:
        job_id, created = new_run_folder(run.output_dir)
    folder = Path(run.output_dir) / job_id
    require_writable(folder, KEY)
    # A run that evaluates checkpoints can do so while the training still writes others.
    lock = FolderLock(folder if training else folder / RESULT, "run.job_id", created)
    if lock.previous:
        get_logger().info("%s was locked by %s, which has ended", lock.folder, lock.previous)
    if not lock.supported:
        get_logger().warning("the file system of %s has no locks. Never start two runs in this folder at a time", lock.folder)
    return folder, lock


def check_run_folder(folder: Path) -> None:
    """Check that files can be written to the folder of a run, which may not exist yet, and that its files can be read.

    Raises:
        UserError: If not, or if a folder has the name of a file. The message names the path.
    """
    require_writable(folder, KEY)
    if folder.is_dir():
        disk.require_readable(str(folder), KEY)
    for path in (path for pattern in FILES for path in sorted(folder.glob(pattern))):
        disk.require_no_folder(path)
        disk.require_readable(str(path), KEY)


def require_space(config: RunConfig, folder: Path, model: Model, world: World) -> None:
    """Check that the disk of a run's folder has space for the part of one checkpoint that this node writes.

    Nodes with a common disk each look for the space of their own part, because hosts have no common name for a disk.

    Args:
        config: the resolved configuration.
        folder: folder of the run on this node, which may not exist yet.
        model: the model; it can be on the meta device.
        world: the processes.

    Raises:
        UserError: If it has not.
    """
    run = config.run
    llm: Any = model.llama_model  # a Protocol cannot require a base class
    is_sharded = run.sharded_checkpoints and run.parallel != "ddp" and all(weight.requires_grad for weight in llm.parameters())
    # Of processes with the same part, only those of the first group write it.
    writers = group_size(run.parallel, run.shard_size, world.size, world.nodes) if is_sharded else 1
    of_ranks = world.nodes.of_ranks if world.several_nodes else (0,) * world.size
    here = sum(node == of_ranks[world.rank] for node in of_ranks[:writers])
    needed = sum(weight.numel() for weight in trainable(model).values()) * BYTES_PER_PARAMETER * here // writers
    usage = disk.usage(folder)
    # Some network disks do not know their size.
    if usage.total and usage.free < needed:
        raise UserError(
            f"{KEY}: the disk of '{folder}' has {usage.free / GIB:.3f} GiB of free space, but a checkpoint of this run needs"
            f" about {needed / GIB:.3f} GiB there. Free disk space, or specify another folder."
        )

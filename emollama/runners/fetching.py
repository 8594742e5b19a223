"""Send the checkpoint from which a run resumes to nodes that do not have it, because their disks are their own.

The nodes keep the parts of a sharded checkpoint that they receive, as if they had written them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import torch

from emollama import checkpoint_parts, disk
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.folder_lock import remove_if_empty
from emollama.heartbeat import beat
from emollama.logs.logger import get_logger
from emollama.runners.node_checks import content_digest

CHUNK = 2**26  # bytes
FOLDER = ".fetched"  # in the folder of the run


@contextmanager
def on_all_nodes(checkpoint: str, folder: Path, world: World, source: int) -> Iterator[str]:
    """Make a checkpoint available on all nodes in this context. Every rank calls it.

    Args:
        checkpoint: path of the checkpoint, or where it would be on this node; each node downloads that of a URL.
        folder: the folder of the run, in which a node without the checkpoint stores a copy until the end of the context.
        world: the processes.
        source: the rank that has the checkpoint.

    Yields:
        The path of the checkpoint on this node.

    Raises:
        UserError: If a node cannot store the checkpoint. The message names the node.
    """
    if not world.several_nodes or "://" in checkpoint:
        yield checkpoint
        return
    path = Path(checkpoint)
    digest = world.on_rank(source, lambda: content_digest(path))
    has_it = world.is_first and path.is_file() and content_digest(path) == digest
    nodes = {world.nodes.of_ranks[rank] for rank, present in enumerate(world.gather(has_it)) if present}
    missing = [host for node, host in enumerate(world.nodes.hosts) if node not in nodes]
    needed = world.nodes.of_ranks[world.rank] not in nodes
    local = folder / FOLDER / path.name if needed else path
    if not missing:
        yield checkpoint
        return
    if world.is_main:
        get_logger().info("sending %s to %s, where it is missing", path.name, ", ".join(missing))
    absent = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        _send(path, local if needed and world.is_first else None, world, source)
        yield str(local)
        world.any(False)  # all processes have read it
    finally:
        if needed and world.is_first:
            shutil.rmtree(local.parent, ignore_errors=True)
            remove_if_empty(absent)


def provide_parts(content: dict[str, Any], folder: Path, world: World) -> None:
    """Send the parts of a sharded checkpoint to nodes that do not have them. Every rank calls it.

    Args:
        content: the content of the checkpoint, with its ``path``. It gets the folder of its parts on this node.
        folder: the folder of the run.
        world: the processes.

    Raises:
        UserError: If no node has a part, or a node cannot store it.
    """
    if not world.several_nodes or checkpoint_parts.ENTRY not in content:
        return
    path = Path(content["path"])
    parent = (folder if path.parent.name == FOLDER else path.parent) / checkpoint_parts.FOLDER
    content[checkpoint_parts.ENTRY][checkpoint_parts.COPIED_TO] = str(parent)
    parts = checkpoint_parts.parts_of(content, path)
    assert parts is not None
    held = world.gather([part.name for part in parts.files if world.is_first and parts.has(part)])
    for part in parts.files:
        holders = [rank for rank, names in enumerate(held) if part.name in names]
        if not holders:
            raise world.user_error(f"run.resume_ckpt_path: no node has an intact copy: {parts.missing(part)}")
        lacking = [rank for rank in range(world.size) if rank not in holders and world.nodes.is_first(rank)]
        if lacking:
            if world.is_main:
                places = ", ".join(map(world.nodes.place, lacking))
                get_logger().info("sending %s to %s, where it is missing", part.name, places)
            file = parts.folder / part.name
            _send(file, file if world.rank in lacking else None, world, holders[0])


def _send(path: Path, target: Path | None, world: World, source: int) -> None:
    """Send a file from one rank to all others; those with a target write it."""
    size = world.on_rank(source, lambda: path.stat().st_size)
    digest = hashlib.sha256()
    writer = None if target is None else _Writer(target)
    with path.open("rb") if world.rank == source else nullcontext() as file:
        for start in range(0, size, CHUNK):
            chunk = bytearray(min(CHUNK, size - start))
            if file is not None:
                file.readinto(chunk)
            world.broadcast(torch.frombuffer(chunk, dtype=torch.uint8), source)
            digest.update(chunk)
            if writer is not None:
                writer.write(chunk)
            beat()
    expected = world.on_rank(source, digest.hexdigest)

    def check() -> None:
        place = world.nodes.place(world.rank)
        if writer is not None:
            writer.close(place)
        if digest.hexdigest() != expected:
            raise UserError(f"{path.name} was damaged on its way to {place}. Start the run again.")

    world.on_all_ranks(check)


class _Writer:
    """A new file. An error is raised at the end, because until then the other nodes need this process to take part."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._error: OSError | None = None

    def write(self, data: bytearray) -> None:
        """Append bytes, unless there was an error."""
        if self._error is not None:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("wb")
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            self._error = error

    def close(self, place: str) -> None:
        """Close the file, and raise the first error.

        Raises:
            UserError: If the file could not be written.
        """
        if self._file is not None:
            with suppress(OSError):  # it flushes again what could not be written
                self._file.close()
        if self._error is not None:
            text = f"{place} cannot store {self._path}, the checkpoint to resume from: {disk.reason(self._error)}."
            raise UserError(f"{text} {disk.remedy(self._error, 'set another run.output_dir')}")

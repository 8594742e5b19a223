"""Send the checkpoint from which a run resumes to nodes that do not have it, because their disks are their own.

The nodes keep the parts of a sharded checkpoint that they receive, as if they had written them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch

from emollama import disk
from emollama.checkpoint_parts import Parts
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


def copies_of_parts(parts: Parts, world: World) -> dict[str, list[int]]:
    """Return for each part of a checkpoint the ranks on whose nodes it is intact. Every rank calls it.

    Args:
        parts: the parts, with their folder on this node, of which one process reads them.
        world: the processes.
    """
    intact = world.gather(parts.intact() if world.is_first else set())
    return {part.name: [rank for rank, names in enumerate(intact) if part.name in names] for part in parts.files}


def provide_parts(parts: Parts, copies: Mapping[str, list[int]], world: World) -> None:
    """Send the parts of a sharded checkpoint to nodes that do not have them. Every rank calls it.

    Args:
        parts: the parts, with their folder on this node.
        copies: the result of :func:`copies_of_parts`, with a rank for each part.
        world: the processes.

    Raises:
        UserError: If a node cannot store a part.
    """
    for part in parts.files:
        having = copies[part.name]
        lacking = [rank for rank in range(world.size) if rank not in having and world.nodes.is_first(rank)]
        if lacking:
            if world.is_main:
                places = ", ".join(map(world.nodes.place, lacking))
                get_logger().info("sending %s to %s, where it is missing", part.name, places)
            file = parts.folder / part.name
            _send(file, file if world.rank in lacking else None, world, having[0])


def _send(path: Path, target: Path | None, world: World, source: int) -> None:
    """Send a file from one rank to all others; those with a target write it."""
    size = world.on_rank(source, lambda: path.stat().st_size)
    digest = hashlib.sha256()
    sent = _SentFile(path) if world.rank == source else None
    received = None if target is None else _ReceivedFile(target)
    for start in range(0, size, CHUNK):
        chunk = bytearray(min(CHUNK, size - start))
        if sent is not None:
            sent.read(chunk)
        world.broadcast(torch.frombuffer(chunk, dtype=torch.uint8), source)
        digest.update(chunk)
        if received is not None:
            received.write(chunk)
        beat()
    expected = world.gather(digest.hexdigest() if sent is not None and sent.error is None else None)[source]

    def check() -> None:
        place = world.nodes.place(world.rank)
        is_complete = digest.hexdigest() == expected
        if sent is not None:
            sent.close(place)
        if received is not None:
            received.close(place, keep=is_complete)
        if expected is not None and not is_complete:
            raise UserError(f"{path.name} was damaged on its way to {place}. Start the run again.")

    world.on_all_ranks(check)


class _SentFile:
    """The file to send. An error is raised at the end, because until then the other nodes need this process to take part.

    Attributes:
        error: the first error.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._path = path
        self._file: IO[bytes] | None = None

    def read(self, chunk: bytearray) -> None:
        """Fill a buffer with the next bytes, unless there was an error."""
        if self.error is not None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("rb")
            if self._file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise OSError("it has become shorter while it was read")
        except OSError as error:
            self.error = error

    def close(self, place: str) -> None:
        """Close the file, and raise the first error.

        Raises:
            UserError: If the file could not be read.
        """
        if self._file is not None:
            self._file.close()
        if self.error is not None:
            text = f"{place} cannot read {self._path}, the checkpoint to resume from: {disk.reason(self.error)}."
            raise UserError(f"{text} Start the run again, or resume from another checkpoint.")


class _ReceivedFile:
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

    def close(self, place: str, *, keep: bool) -> None:
        """Close the file and raise the first error. An incomplete file is deleted, and so is any file without ``keep``.

        Raises:
            UserError: If the file could not be written.
        """
        if self._file is not None:
            try:
                # Network disks can report only here that they are full.
                os.fsync(self._file.fileno())
                self._file.close()
            except OSError as error:
                self._error = self._error or error
                with suppress(OSError):  # it flushes again what could not be written
                    self._file.close()
        if self._error is not None or not keep:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        if self._error is not None:
            text = f"{place} cannot store {self._path}, the checkpoint to resume from: {disk.reason(self._error)}."
            raise UserError(f"{text} {disk.remedy(self._error, 'set another run.output_dir')}")

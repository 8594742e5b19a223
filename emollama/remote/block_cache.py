"""A cache of blocks of remote files on this machine's disk, which the user's processes share and which has a fixed size.

It consists of two files: the blocks, in slots of equal size, and a table of the slots, which is mapped into memory. The least
recently used block is replaced. A process that is killed while it writes a block leaves its slot marked as incomplete, and
another process takes the slot over. Blocks are not flushed to the disk: readers compare what they read with its checksums.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

# After this time, another process that has the number of one that was killed cannot be the one that is writing a block.
_ABANDONED_NS = 200 * 10**9
_COLUMNS = 3  # of 8 bytes each in the table: key, time of the last use, process that is writing the block


class Claim(NamedTuple):
    """The slot of a block.

    Attributes:
        slot: number of the slot.
        is_complete: whether it contains the block; otherwise, this process has reserved it and must write or release it.
    """

    slot: int
    is_complete: bool


class BlockCache:
    """The blocks of one size on this machine, open in this process. A forked process must open the cache again.

    Args:
        folder: the folder of the files, which is created. Nodes may share it; each has files of its own.
        slots: number of blocks.
        block_bytes: size of a block.

    Raises:
        OSError: If the files cannot be created.
    """

    def __init__(self, folder: Path, slots: int, block_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.slots, self._block_bytes, self._lock = slots, block_bytes, threading.Lock()
        prefix = re.sub(r"[^\w.-]", "_", platform.node()) or "node"
        stem = f"{prefix}@{block_bytes}x{slots}"
        self._table = os.open(folder / f"{stem}.table", os.O_RDWR | os.O_CREAT, 0o600)
        size = 8 * _COLUMNS * slots
        with self._locked():
            # The table is written in full: a page of a mapped file for which the disk has no space would end the process.
            if os.fstat(self._table).st_size != size:
                os.ftruncate(self._table, 0)
                os.pwrite(self._table, bytes(size), 0)
            if os.fstat(self._table).st_size != size:
                raise OSError(28, os.strerror(28))
        self._blocks = os.open(folder / f"{stem}.blocks", os.O_RDWR | os.O_CREAT, 0o600)
        columns = np.frombuffer(mmap.mmap(self._table, size), np.uint64).reshape(_COLUMNS, slots)
        self._keys, self._used, self._writers = columns
        # A cache with a different number of blocks is not used any more.
        for path in folder.glob(f"{prefix}@*"):
            if path.stem != stem:
                path.unlink(missing_ok=True)

    def __del__(self) -> None:
        for name in ("_table", "_blocks"):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def claim(self, key: int) -> Claim | None:
        """Return the slot of a block, which is reserved for this process if the cache does not have the block.

        Returns:
            None if another process or thread is reading the block from its server.
        """
        with self._locked():
            slots = np.flatnonzero(self._keys == key)
            slot = int(slots[0]) if len(slots) else int(self._used.argmin())
            if len(slots) and not self._writers[slot]:
                self._used[slot] = time.time_ns()
                return Claim(slot, True)
            if len(slots) and _is_running(int(self._writers[slot])) and time.time_ns() - int(self._used[slot]) < _ABANDONED_NS:
                return None
            self._keys[slot], self._used[slot], self._writers[slot] = key, time.time_ns(), os.getpid()
        return Claim(slot, False)

    def read(self, slot: int, key: int, size: int) -> bytes | None:
        """Return the first bytes of a block; None if another block has replaced it in the meantime."""
        content = os.pread(self._blocks, size, slot * self._block_bytes)
        is_same = self._keys[slot] == key and not self._writers[slot]
        return content if is_same and len(content) == size else None

    def write(self, slot: int, key: int, content: bytes | memoryview) -> None:
        """Write a block into the slot that this process has reserved for it.

        Raises:
            OSError: If the disk is full. The slot is still reserved.
        """
        offset, rest = slot * self._block_bytes, memoryview(content)
        while rest:
            written = os.pwrite(self._blocks, rest, offset)
            offset, rest = offset + written, rest[written:]
        with self._locked():
            if self._is_own(slot, key):
                self._writers[slot] = 0

    def release(self, slot: int, key: int) -> None:
        """Free the slot that this process has reserved, if the block has not been written."""
        with self._locked():
            if self._is_own(slot, key):
                self._keys[slot] = self._used[slot] = self._writers[slot] = 0

    def forget(self, key: int) -> None:
        """Remove a block whose content is wrong."""
        with self._locked():
            for slot in np.flatnonzero((self._keys == key) & (self._writers == 0)):
                self._keys[slot] = self._used[slot] = 0

    def _is_own(self, slot: int, key: int) -> bool:
        # With very few slots, other blocks may have replaced this one while it was being written.
        return bool(self._keys[slot] == key and self._writers[slot] == os.getpid())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the table. The system releases the lock of a process that is killed."""
        with self._lock:
            fcntl.lockf(self._table, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._table, fcntl.LOCK_UN)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

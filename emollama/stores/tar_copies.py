"""Downloaded tars: mapping into memory, and the comparison of their values with the checksums in their indexes."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from contextlib import suppress
from pathlib import Path

from emollama.heartbeat import beat
from emollama.paths import cache_folder
from emollama.stores import tar_index

Mapped = mmap.mmap | bytes
_CACHE = "checked-tars"  # subfolder of the user's cache folder: an empty file for each tar that has the values in its index


def map_file(path: str) -> Mapped:
    """Map a file into memory."""
    with open(path, "rb") as file:
        # An empty file cannot be mapped.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""


def has_indexed_values(path: str, data: Mapped, index_path: str) -> bool:
    """Return whether a tar has the values in its index; True if the index has no checksums of values.

    Tars that are written by the same program have equal headers, so only their values show that a tar has changed. They are read
    once for each copy of a tar and each index.

    Args:
        path: the local copy of the tar.
        data: its bytes.
        index_path: its index file, which may be remote.
    """
    done = _marker(path, index_path)
    if done is not None and done.exists():
        return True
    index = tar_index.read(index_path)
    if index.checksums is None:
        return True
    with memoryview(data) as view:
        for kind, offset, checksum in zip(index.entries["kind"], index.entries["offset"], index.checksums, strict=True):
            with view[int(offset) : int(offset) + index.layouts[kind].nbytes] as values:
                if zlib.crc32(values) != checksum:
                    return False
            beat()
    if done is not None:
        # The values are only read again the next time if it cannot be written.
        with suppress(OSError):
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()
    return True


def _marker(path: str, index_path: str) -> Path | None:
    """Return the file that exists if a tar has the values in its index; None without a cache folder."""
    status = os.stat(path)
    fields = [os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino, *tar_index.fingerprint(index_path)]
    # Without a home folder there is no cache folder.
    with suppress(RuntimeError):
        return cache_folder() / _CACHE / hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]
    return None

"""Where the arrays of one encoder lie: a folder of .npy files, packed shards, or tar shards.

The three are the same to their reader: clip name -> one array, as it was stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from emollama.paths import PATHS, require_folder
from emollama.stores import packed, tars
from emollama.stores.npy import npy_header, read_npy


class ArrayStore(Protocol):
    """Clip name -> one array, as stored."""

    def __contains__(self, name: object) -> bool: ...

    def names(self) -> Iterable[str]:
        """Every clip that has an array."""
        ...

    def load(self, name: str) -> np.ndarray:
        """The clip's array, its bytes copied.

        Raises:
            OSError, ValueError: unreadable, or anything but one array of plain numbers.
        """
        ...

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype without the values; refuses what is shorter than its header says.

        Raises:
            OSError, ValueError: as :meth:`load`.
        """
        ...

    def location(self, name: str) -> str:
        """Where the array lies, as messages call it."""
        ...

    def stamp(self, name: str) -> tuple[int, ...]:
        """Numbers that change when the array may have changed; empty where nothing tells, so that it is looked at each time."""
        ...

    def groups(self, names: Sequence[str]) -> np.ndarray | None:
        """(len(names),) number of the shard of each clip, where reading by shard is cheaper; else None."""
        ...


@dataclass(frozen=True)
class NpyFolder:
    """One ``<name>.npy`` a clip."""

    folder: Path
    listed: frozenset[str]

    @classmethod
    def open(cls, folder: Path) -> NpyFolder:
        """List the folder once."""
        return cls(folder, frozenset(name.removesuffix(".npy") for name in os.listdir(folder) if name.endswith(".npy")))

    def __contains__(self, name: object) -> bool:
        return name in self.listed or ("/" in str(name) and Path(self.location(str(name))).is_file())

    def names(self) -> Iterable[str]:
        """The clips at the folder's own level."""
        return self.listed

    def load(self, name: str) -> np.ndarray:
        """The file's array.

        Raises:
            OSError, ValueError: unreadable, pickled objects, or an archive.
        """
        with open(self.location(name), "rb") as file:
            return read_npy(file)

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype, from the first bytes.

        Raises:
            OSError, ValueError: unreadable, or shorter than it says.
        """
        with open(self.location(name), "rb") as file:
            shape, _, dtype = npy_header(file)
            lacking = file.tell() + int(np.prod(shape)) * dtype.itemsize - os.fstat(file.fileno()).st_size
        if lacking > 0:
            raise ValueError(f"{lacking} bytes are missing at its end")
        return shape, dtype

    def location(self, name: str) -> str:
        """The file's path."""
        return f"{self.folder}/{name}.npy"

    def stamp(self, name: str) -> tuple[int, ...]:
        """Size, times of modification and of change (which copying tools do not set), and inode."""
        status = os.stat(self.location(name))
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    def groups(self, names: Sequence[str]) -> np.ndarray | None:
        """None: any order of files is as good."""
        return None


def open_store(path: str, key: str) -> ArrayStore:
    """The store that lies at a path: tar shards, packed shards, or .npy files.

    Args:
        path: a folder, or tars as ``name-{000..011}.tar`` (``::face`` after it where a tar holds several slots).
        key: the configuration key that named it, for messages.

    Raises:
        UserError: there is nothing of the kind.
    """
    if tars.is_tar_path(path):
        return tars.TarStore.open(path)
    require_folder(path, key, "Correct the path." if key.startswith("--") else f"Correct the path, or set {key}: null.")
    folder = PATHS.get_local_path(path)
    return packed.PackedStore.open(folder) if packed.is_packed(folder) else NpyFolder.open(Path(folder))

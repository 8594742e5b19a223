"""The interface of an array store, and its simplest form, a folder of .npy files.

A store maps a clip name to one array of one encoder. Packed shards and tar shards implement the same interface.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from emollama.errors import DownloadError, UserError
from emollama.paths import PATHS, require_folder, sha256
from emollama.remote.manager import is_remote, require_handler
from emollama.stores import checksums, packed
from emollama.stores.conversion import reject_other_formats
from emollama.stores.name_set import NameSet
from emollama.stores.npy import npy_header, read_npy
from emollama.stores.streamed_tars import StreamedTarStore
from emollama.stores.tar_paths import is_tar_path
from emollama.stores.tars import TarStore

# What to do about a folder at a URL.
_PACK = (
    "Pack it into tar shards (emollama pack --source FOLDER --output SHARDS --to tar), upload the files of SHARDS, and name the"
    " tars, such as https://HOST/SHARDS/shard-{00000..00003}.tar; or name a local copy of the folder."
)


class ArrayStore(Protocol):
    """Interface of a store: maps a clip name to one array."""

    def __contains__(self, name: object) -> bool: ...

    def names(self) -> Iterable[str]:
        """Return the names of all clips that have an array."""
        ...

    def load(self, name: str) -> np.ndarray:
        """Read a clip's array as a copy.

        Raises:
            OSError, ValueError: If the array is missing, unreadable, or not an array of plain numbers.
        """
        ...

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Read shape and dtype without the values.

        Raises:
            OSError, ValueError: As for :meth:`load`.
        """
        ...

    def location(self, name: str) -> str:
        """Return the location of the array for messages."""
        ...

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return numbers that change if the array may have changed; empty if there are none, so that checks are not cached."""
        ...

    def is_intact(self, name: str) -> bool | None:
        """Read a clip's array and return whether it has the digest that was recorded when it was written; None without a digest.

        Raises:
            OSError, ValueError: If the array or the digests cannot be read.
        """
        ...

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return the (len(names),) shard index of each clip if reading shard by shard is faster; else None."""
        ...


@runtime_checkable
class DigestedStore(Protocol):
    """What a store provides in addition if a resumed run can find that its arrays have changed."""

    @property
    def values_digest(self) -> str | None:
        """Hash of the values of all arrays; None if it is not known."""
        ...


@runtime_checkable
class StampedStore(Protocol):
    """What a store provides in addition if it has few files, so that checks of all arrays can be remembered together."""

    def files_stamp(self) -> tuple[int, ...]:
        """Return numbers that change if any file of the store may have changed; empty if there are none."""
        ...


@dataclass(frozen=True)
class NpyFolder:
    """A folder with one file ``<name>.npy`` per clip.

    Attributes:
        folder: the folder.
        listed: names of the clips directly in the folder, which was listed once.
    """

    folder: Path
    listed: NameSet

    @classmethod
    def open(cls, folder: Path) -> NpyFolder:
        """Open a folder and list it."""
        return cls(folder, NameSet(name.removesuffix(".npy") for name in os.listdir(folder) if name.endswith(".npy")))

    def __contains__(self, name: object) -> bool:
        return name in self.listed or ("/" in str(name) and Path(self.location(str(name))).is_file())

    def names(self) -> Iterable[str]:
        """Return the names of the clips directly in the folder."""
        return self.listed

    def load(self, name: str) -> np.ndarray:
        """Read the array of a file.

        Raises:
            OSError, ValueError: If the file is missing, unreadable, not an array of plain numbers, or shorter or longer than its
                header says.
        """
        with open(self.location(name), "rb") as file:
            return read_npy(file)

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Read shape and dtype from the header of a file.

        Raises:
            OSError, ValueError: As for :meth:`load`.
        """
        with open(self.location(name), "rb") as file:
            shape, _, dtype = npy_header(file, os.fstat(file.fileno()).st_size)
        return shape, dtype

    def location(self, name: str) -> str:
        """Return the path of the file."""
        return f"{self.folder}/{name}.npy"

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return size, modification time, change time (which copying tools cannot set), and inode of the file."""
        status = os.stat(self.location(name))
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    def is_intact(self, name: str) -> bool | None:
        """Compare the file with its digest in ``SHA256SUMS`` (:mod:`emollama.stores.checksums`); None without a digest.

        Raises:
            OSError: If the file or the digests cannot be read.
        """
        recorded = self._digests.get(name)
        return None if recorded is None else sha256(self.location(name)) == recorded

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return None, because separate files can be read in any order."""
        return None

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        return checksums.read(self.folder)


def open_store(path: str, key: str, stream: bool = False) -> ArrayStore:
    """Open the store at a path: tar shards, packed shards, or .npy files.

    Args:
        path: a folder, or tars as ``name-{000..011}.tar``, followed by ``::face`` if the tars contain several slots.
        key: the configuration key that named the path, for messages.
        stream: whether remote tars are read in parts when they are needed, and not downloaded.

    Raises:
        UserError: If the path does not exist, cannot be downloaded, its shards are unusable, or it contains feature files of
            another kind.
    """
    try:
        if is_remote(path):
            require_handler(path, key)
        if is_tar_path(path):
            return (StreamedTarStore if stream else TarStore).open(path)
    except DownloadError as error:
        raise UserError(f"{key}: {error}") from None
    if os.path.isfile(path):
        raise UserError(f"{key}: '{path}' is a file; expected a folder with one file <name>.npy per clip, or shards.")
    remedy = "Correct the path." if key.startswith("--") else f"Correct the path, or set {key}: null."
    require_folder(path, key, remedy, if_remote=_PACK)
    folder = PATHS.get_local_path(path)
    if packed.is_packed(folder):
        return packed.PackedStore.open(folder)
    store = NpyFolder.open(Path(folder))
    if not store.listed:
        reject_other_formats(folder, key)
    return store

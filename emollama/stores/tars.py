"""Tar shards of webdataset, read by clip name with an index of all shards (:mod:`emollama.stores.tar_set`).

A path is a folder of shards, one shard, or several shards: ``shards/train-{000..003}.tar``, ``shards/train-*.tar``. If a shard
has one array per clip, its members are ``<name>.npy``. If it has several, they are ``<name>.<slot>.npy``, and the path ends with
the slot: ``shards/train-{000..003}.tar::face``. In webdataset, a name ends at the first dot. Here, it is everything before
``.npy`` or ``.<slot>.npy``. If all names of members contain a further dot, the path must end with a slot, or with ``::`` if the
dots are part of the clip names.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.paths import PATHS
from emollama.remote.manager import is_remote
from emollama.stores import tar_index
from emollama.stores.index import Location, file_stamps
from emollama.stores.tar_copies import Mapped, has_indexed_values, map_file
from emollama.stores.tar_paths import is_local, list_shards, split_slot
from emollama.stores.tar_set import TarSet, open_set, shard_path

MAX_OPEN_MAPS = 128  # shards that a store maps at once in a process; each needs a file descriptor


class TarStore:
    """The arrays of tar shards by clip name. Implements ``emollama.stores.store.ArrayStore``.

    A shard is downloaded (``PATHS.get_local_path``) and mapped when it is first used in a process. Shards on this machine are
    also checked when the store opens. Unpickling a store opens it again.

    Attributes:
        path: the configured path.
        values_digest: hash of the names and values of all arrays; None if an index file has no checksums of values.
    """

    def __init__(self, path: str, slot: str | None, shards: list[str], indexes: list[str], tar_set: TarSet) -> None:
        self.path, self._shards, self._indexes = path, shards, indexes
        self._descriptions, self._layouts, self._index = tar_set.shards, tar_set.layouts, tar_set.index
        self.values_digest = tar_set.digest
        self._suffix = f".{slot}" if slot else ""
        self._shard = functools.lru_cache(MAX_OPEN_MAPS)(self._map_shard)
        self._checksums = functools.cache(self._read_checksums)
        self._failed: dict[int, UserError] = {}  # shards that cannot be downloaded, or do not have the values in their indexes

    @classmethod
    def open(cls, path: str, is_known: bool = False) -> Self:
        """Read the indexes of the shards, and compare them with the shards on this machine.

        Args:
            path: the path.
            is_known: whether the store was open before, so that servers need not be asked again whether they have the shards.

        Raises:
            UserError: If there are no shards, an index is missing or belongs to another shard, two shards have the same clip, or
                no member has the slot.
            DownloadError: If a remote shard does not exist, or an index cannot be downloaded.
        """
        pattern, slot = split_slot(path)
        matches = list_shards(pattern)
        if compressed := [shard for shard in matches if not shard.endswith((".tar", tar_index.SUFFIX))]:
            raise UserError(f"{compressed[0]}: a compressed tar does not allow reading in any order. Decompress it.")
        paths = [shard if shard.endswith(tar_index.SUFFIX) else shard + tar_index.SUFFIX for shard in matches]
        for shard in matches:
            if not (is_known and is_remote(shard)):
                is_local(shard)
        tar_set = open_set(paths)
        shards = [shard_path(shard, path) for shard, path in zip(tar_set.shards, paths, strict=True)]
        _check_slot(pattern, slot, {extension for shard in tar_set.shards for extension in shard.endings})
        store = cls(path, slot, shards, paths, tar_set)
        store._check_shards(is_known)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path, True)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name + self._suffix) is not None

    def names(self) -> Iterable[str]:
        """Yield the names of all clips that have an array (of the slot), shard by shard."""
        for name in self._index.names():
            if name.endswith(self._suffix):
                yield name.removesuffix(self._suffix)

    def load(self, name: str) -> np.ndarray:
        """Return a copy of a clip's array.

        Raises:
            OSError, ValueError: If the clip does not exist.
            UserError: If the shard cannot be downloaded, or has changed since it was indexed.
        """
        location = self._find(name)
        layout = self._layouts[location.kind]
        order: Any = "F" if layout.fortran else "C"
        return np.ndarray(layout.shape, layout.dtype, self._member(location), layout.head, order=order).copy(order="K")

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype from the index.

        Raises:
            OSError: If the clip does not exist.
        """
        layout = self._layouts[self._find(name).kind]
        return layout.shape, layout.dtype

    def location(self, name: str) -> str:
        """Return shard and member, for messages."""
        location = self._index.find(name + self._suffix)
        return f"{self._shards[location.shard] if location else self.path}, {name}{self._suffix}.npy"

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return size, modification time, change time and inode of the shard or its local copy, and the array's offset.

        Raises:
            OSError: If the clip does not exist, or the shard cannot be read.
            UserError: If the shard cannot be downloaded, or does not have the values in its index.
        """
        shard_index, offset, _, _ = self._find(name)
        path = self._shards[shard_index]
        if is_remote(path):
            self._shard(shard_index)
            path = PATHS.get_local_path(path)
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, offset

    def files_stamp(self) -> tuple[int, ...]:
        """Return the stamps of the shards and their indexes; empty if some are remote, whose local copies could be damaged."""
        return file_stamps([*self._shards, *self._indexes])

    def is_intact(self, name: str) -> bool | None:
        """Return whether a clip's headers and values have the checksums in the index file; None if those of values are missing.

        Raises:
            OSError: As for :meth:`load`.
            UserError: If an index file cannot be read, or the size of the shard has changed since it was indexed.
            DownloadError: If the shard or its index cannot be downloaded.
        """
        shard_index, offset, kind_index, head_checksum = self._find(name)
        checksum = self._checksums(shard_index).get(name + self._suffix)
        if checksum is None:
            return None
        shard, layout = self._shard(shard_index), self._layouts[kind_index]
        head, values = shard[offset - layout.head : offset], shard[offset : offset + layout.nbytes]
        return (zlib.crc32(head), zlib.crc32(values)) == (head_checksum, checksum)

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return the (len(names),) int64 shard number of each clip; -1 for unknown clips."""
        return self._index.shards([name + self._suffix for name in names])

    @property
    def shards_to_download(self) -> list[str]:
        """The shards at remote locations."""
        return [shard for shard in self._shards if is_remote(shard)]

    @property
    def skipped(self) -> dict[str, dict[str, int]]:
        """Shard -> number of members that are not arrays, by extension. They are not read."""
        return {shard: about.skipped for shard, about in zip(self._shards, self._descriptions, strict=True) if about.skipped}

    def _find(self, name: str) -> Location:
        location = self._index.find(name + self._suffix)
        if location is None:
            raise FileNotFoundError(f"no member '{name}{self._suffix}.npy' in {self.path}")
        return location

    def _member(self, location: Location) -> memoryview | bytes:
        """Return the headers and values of an array.

        Raises:
            OSError: If the shard cannot be read.
            UserError: If it cannot be downloaded, or has changed since it was indexed.
        """
        layout = self._layouts[location.kind]
        with memoryview(self._shard(location.shard)) as shard:
            member = shard[location.offset - layout.head : location.offset + layout.nbytes]
        if zlib.crc32(member[: layout.head]) != location.checksum:
            raise stale_index(self._shards[location.shard])
        return member

    def _read_checksums(self, shard_index: int) -> dict[str, int]:
        index = tar_index.read(self._indexes[shard_index])
        return {} if index.checksums is None else dict(zip(index.names, index.checksums.tolist(), strict=True))

    def _map_shard(self, shard_index: int) -> Mapped:
        if shard_index in self._failed:
            raise self._failed[shard_index]
        shard = self._shards[shard_index]
        try:
            path = PATHS.get_local_path(shard)
            data = map_file(path)
            is_indexed = len(data) == self._descriptions[shard_index].bytes
            if not (is_indexed and (not is_remote(shard) or has_indexed_values(path, data, self._indexes[shard_index]))):
                raise stale_index(shard)
        except UserError as error:
            # Several attempts failed, or the whole shard was read. Each of its clips would take as long.
            self._failed[shard_index] = error
            raise
        return data

    def _check_shards(self, is_known: bool) -> None:
        """Check the shards on this machine when the store opens; with ``is_known``, as in :meth:`open`."""
        for shard_index, shard in enumerate(self._shards):
            if not (is_known and is_remote(shard)) and is_local(shard):
                self._check_shard(shard_index)

    def _check_shard(self, shard_index: int) -> None:
        """Compare the size of a shard and the headers of its first array with the index."""
        first = self._index.find(self._descriptions[shard_index].first)
        if first is None:
            raise stale_index(self._shards[shard_index])
        try:
            self._member(first)
        except OSError as error:
            raise UserError(
                f"{self._shards[shard_index]}: cannot be read: {error.strerror or error}. {remedy(error, 'correct the path')}"
            ) from None


def _check_slot(pattern: str, slot: str | None, extensions: set[str]) -> None:
    shown = ", ".join(f".{extension}" for extension in sorted(extensions)[:8])
    if slot and f"{slot}.npy" not in extensions and not any(extension.endswith(f".{slot}.npy") for extension in extensions):
        raise UserError(f"{pattern}::{slot}: no member ends with .{slot}.npy. Members end with {shown}. Correct the slot.")
    if slot is None and "npy" not in extensions:
        raise UserError(
            f"{pattern}: its members end with {shown}. Append the slot of the array to the path, as in "
            f"'{pattern}::{min(extensions).removesuffix('.npy')}', or append '::' if the dots belong to the clip names."
        )


def stale_index(shard: str) -> UserError:
    """Return the error for a shard that has other content than its index says."""
    return UserError(
        f"{shard}: its index belongs to another shard or to an older version. Write it again: emollama pack --index '{shard}'"
    )

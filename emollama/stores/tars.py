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
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand

from emollama.disk import remedy
from emollama.errors import FileAbsent, UserError
from emollama.paths import PATHS
from emollama.remote.manager import is_remote
from emollama.stores import tar_index
from emollama.stores.index import Location
from emollama.stores.tar_copies import Mapped, has_indexed_values, map_file
from emollama.stores.tar_set import TarSet, open_set, shard_path

MAX_OPEN_MAPS = 128  # shards that a store maps at once in a process; each needs a file descriptor
_TAR = (".tar", ".tar.gz", ".tgz")


def is_tar_path(path: str) -> bool:
    """Return whether a path means tar shards: a tar, or a folder that contains tars or their indexes but no .npy files."""
    pattern, _ = split_slot(path)
    if pattern.endswith(_TAR):
        return True
    names = _list_folder(pattern)
    return any(name.endswith((*_TAR, tar_index.SUFFIX)) for name in names) and not any(name.endswith(".npy") for name in names)


def split_slot(path: str) -> tuple[str, str | None]:
    """Split ``shards.tar::face`` into ("shards.tar", "face"); the slot is None if there is no ``::``."""
    match = re.fullmatch(r"(.*)::([^/:\]]*)", path, re.DOTALL)
    return (match[1], match[2]) if match else (path, None)


def list_shards(pattern: str) -> list[str]:
    """Return the tars of a path without a slot, in order; for a folder without tars, the indexes.

    Raises:
        UserError: If there are no tars, the braces in the path are not closed, or a URL contains ``*``.
    """
    if names := sorted(_list_folder(pattern)):
        for extension in (".tar", tar_index.SUFFIX, *_TAR):
            if shards := [os.path.join(pattern, name) for name in names if name.endswith(extension)]:
                return shards
    if os.path.exists(pattern):
        return [pattern]
    try:
        expanded = list(braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError:
        raise UserError(f"{pattern}: the braces are not closed. Correct the path.") from None
    if is_remote(pattern) and "*" in pattern:
        raise UserError(f"{pattern}: a URL cannot contain '*'. List the tars with braces, as in shard-{{00000..00003}}.tar.")
    shards = [shard for part in expanded for shard in (_glob(part) if "*" in part else [part])]
    if not shards:
        raise UserError(f"no tar '{pattern}' (current directory: {os.getcwd()}). Correct the path.")
    return shards


def is_local(shard: str) -> bool:
    """Return whether a shard is on this machine rather than at a remote location.

    Raises:
        UserError: If the file does not exist. At some remote locations, this cannot be checked.
    """
    if os.path.isfile(shard):
        return True
    try:
        exists = PATHS.isfile(shard)
    except NotImplementedError:
        # iopath cannot check whether a file exists at this remote location.
        exists = True
    if not exists and is_remote(shard):
        raise FileAbsent(f"'{shard}': there is no such file. Correct the URL, or upload the file.")
    if not exists:
        raise UserError(f"no tar '{shard}' (current directory: {os.getcwd()}). Correct the path.")
    return False


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
    def open(cls, path: str, is_known: bool = False) -> TarStore:
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
        for shard_index, shard in enumerate(shards):
            if not (is_known and is_remote(shard)) and is_local(shard):
                store._check_shard(shard_index)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return TarStore.open, (self.path, True)

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
        shard_index, offset, kind_index, checksum = self._find(name)
        layout = self._layouts[kind_index]
        shard = self._shard(shard_index)
        if zlib.crc32(shard[offset - layout.head : offset]) != checksum:
            raise _stale_index(self._shards[shard_index])
        order: Any = "F" if layout.fortran else "C"
        array: np.ndarray = np.ndarray(layout.shape, layout.dtype, shard, offset, order=order).copy(order="K")
        return array

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
    def remote_shards(self) -> list[str]:
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
                raise _stale_index(shard)
        except UserError as error:
            # Several attempts failed, or the whole shard was read. Each of its clips would take as long.
            self._failed[shard_index] = error
            raise
        return data

    def _check_shard(self, shard_index: int) -> None:
        """Compare the size of a shard and the headers of its first array with the index."""
        first = self._index.find(self._descriptions[shard_index].first)
        try:
            data = self._shard(shard_index)
        except OSError as error:
            raise UserError(
                f"{self._shards[shard_index]}: cannot be read: {error.strerror or error}. {remedy(error, 'correct the path')}"
            ) from None
        if first is None or zlib.crc32(data[first.offset - self._layouts[first.kind].head : first.offset]) != first.checksum:
            raise _stale_index(self._shards[shard_index])


def _check_slot(pattern: str, slot: str | None, extensions: set[str]) -> None:
    shown = ", ".join(f".{extension}" for extension in sorted(extensions)[:8])
    if slot and f"{slot}.npy" not in extensions and not any(extension.endswith(f".{slot}.npy") for extension in extensions):
        raise UserError(f"{pattern}::{slot}: no member ends with .{slot}.npy. Members end with {shown}. Correct the slot.")
    if slot is None and "npy" not in extensions:
        raise UserError(
            f"{pattern}: its members end with {shown}. Append the slot of the array to the path, as in "
            f"'{pattern}::{min(extensions).removesuffix('.npy')}', or append '::' if the dots belong to the clip names."
        )


def _list_folder(path: str) -> list[str]:
    """Return the names of the files in a folder; an empty list if it does not exist."""
    try:
        return list(PATHS.ls(path)) if PATHS.isdir(path) else []
    except (NotImplementedError, PermissionError):
        # iopath cannot list this remote location, or a later check reports the permissions with the configuration key.
        return []


def _glob(pattern: str) -> list[str]:
    folder, name = os.path.split(pattern)
    return sorted(map(str, Path(folder).glob(name)))


def _stale_index(shard: str) -> UserError:
    return UserError(
        f"{shard}: its index belongs to another shard or to an older version. Write it again: emollama pack --index '{shard}'"
    )

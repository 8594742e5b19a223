"""Tar shards of webdataset, read by clip name with an index for each shard (:mod:`emollama.stores.tar_index`).

A path is a folder of shards, one shard, or several shards: ``shards/train-{000..003}.tar``, ``shards/train-*.tar``. If a shard
has one array per clip, its members are ``<name>.npy``. If it has several, they are ``<name>.<slot>.npy``, and the path ends with
the slot: ``shards/train-{000..003}.tar::face``. In webdataset, a name ends at the first dot. Here, it is everything before
``.npy`` or ``.<slot>.npy``. If all names of members contain a further dot, the path must end with a slot, or with ``::`` if the
dots are part of the clip names.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand

from emollama.errors import UserError
from emollama.paths import PATHS
from emollama.stores import tar_index, tar_set
from emollama.stores.name_index import NameIndex, split_names
from emollama.stores.tar_index import TarIndex
from emollama.stores.tar_set import TarSet

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
        UserError: If there are no tars, or the braces in the path are not closed.
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
    if not exists:
        raise UserError(f"no tar '{shard}' (current directory: {os.getcwd()}). Correct the path.")
    return False


class TarStore:
    """The arrays of tar shards by clip name. Implements ``emollama.stores.store.ArrayStore``.

    A shard is downloaded (``PATHS.get_local_path``) and mapped when it is first used in a process. Shards on this machine are
    also checked when the store opens. Unpickling a store opens it again.
    """

    def __init__(self, path: str, slot: str | None, shards: list[str], shards_in_set: tuple[TarSet, list[int]]) -> None:
        self.path, self._shards = path, shards
        self._set, self._set_indices = shards_in_set  # a set may have more shards than this store
        self._suffix = f".{slot}" if slot else ""
        self._index = NameIndex(self._set.table, len(self._set.ends))
        # Maps the index of a shard in the set to its index in self._shards, or -1. The last element maps -1 to -1.
        self._positions = np.full(len(self._set.shards) + 1, -1)
        self._positions[self._set_indices] = np.arange(len(shards))
        self._shard = functools.lru_cache(MAX_OPEN_MAPS)(self._map_shard)

    @classmethod
    def open(cls, path: str) -> TarStore:
        """Read the indexes of the shards, and compare them with the shards on this machine.

        Raises:
            UserError: If there are no shards, an index is missing or belongs to another shard, two shards have the same clip, or
                no member has the slot.
        """
        pattern, slot = split_slot(path)
        matches = list_shards(pattern)
        if compressed := [shard for shard in matches if not shard.endswith((".tar", tar_index.SUFFIX))]:
            raise UserError(f"{compressed[0]}: a compressed tar does not allow reading in any order. Decompress it.")
        paths = [shard if shard.endswith(tar_index.SUFFIX) else shard + tar_index.SUFFIX for shard in matches]
        for shard in matches:
            is_local(shard)
        shards_in_set = tar_set.find_set(paths) or _build_set(paths)
        descriptions = [shards_in_set[0].shards[index] for index in shards_in_set[1]]
        shards = [_shard_path(shard, index) for shard, index in zip(descriptions, paths, strict=True)]
        _check_slot(pattern, slot, {extension for shard in descriptions for extension in shard.endings})
        store = cls(path, slot, shards, shards_in_set)
        for shard_index, shard in enumerate(shards):
            if is_local(shard):
                store._check_shard(shard_index)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return TarStore.open, (self.path,)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(name) is not None

    def names(self) -> Iterable[str]:
        """Yield the names of all clips that have an array (of the slot), shard by shard."""
        for set_index in self._set_indices:
            for name in self._set.names(set_index):
                if name.endswith(self._suffix):
                    yield name.removesuffix(self._suffix)

    def load(self, name: str) -> np.ndarray:
        """Return a copy of a clip's array.

        Raises:
            OSError, ValueError: If the clip does not exist, or its shard cannot be downloaded.
            UserError: If the shard has changed since it was indexed.
        """
        kind_index, shard_index, offset, check = self._find(name)
        layout = self._set.layouts[kind_index]
        shard = self._shard(shard_index)
        if zlib.crc32(shard[offset - layout.head : offset]) != check:
            raise _stale_index(self._shards[shard_index])
        order: Any = "F" if layout.fortran else "C"
        array: np.ndarray = np.ndarray(layout.shape, layout.dtype, shard, offset, order=order).copy(order="K")
        return array

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype from the index.

        Raises:
            OSError: If the clip does not exist.
        """
        layout = self._set.layouts[self._find(name)[0]]
        return layout.shape, layout.dtype

    def location(self, name: str) -> str:
        """Return shard and member, for messages."""
        entry = self._entry(name)
        return f"{self._shards[entry[1]] if entry else self.path}, {name}{self._suffix}.npy"

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return size, modification time, change time and inode of the shard, and the array's offset; empty for a remote shard.

        Raises:
            OSError: If the clip does not exist.
        """
        _, shard_index, offset, _ = self._find(name)
        try:
            status = os.stat(self._shards[shard_index])
        except OSError:
            return ()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, offset

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return the (len(names),) int64 shard number of each clip; -1 for unknown clips."""
        members = [name + self._suffix for name in names] if self._suffix else names
        positions: np.ndarray = self._positions[self._index.shards(members)]
        return positions

    def _entry(self, name: str) -> tuple[int, int, int, int] | None:
        """Return (index of the layout, index in ``_shards``, offset, check), or None."""
        entry = self._index.find(name + self._suffix)
        if entry is None or (position := int(self._positions[entry[2]])) < 0:
            return None
        return entry[1], position, entry[3], entry[4]

    def _find(self, name: str) -> tuple[int, int, int, int]:
        entry = self._entry(name)
        if entry is None:
            raise FileNotFoundError(f"no member '{name}{self._suffix}.npy' in {self.path}")
        return entry

    def _map_shard(self, shard_index: int) -> mmap.mmap:
        with open(PATHS.get_local_path(self._shards[shard_index]), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(data) != self._set.shards[self._set_indices[shard_index]].bytes:
            raise _stale_index(self._shards[shard_index])
        return data

    def _check_shard(self, shard_index: int) -> None:
        """Compare the size of a shard and the headers of its first array with the index."""
        first = self._index.find(next(self._set.names(self._set_indices[shard_index])))
        try:
            data = self._shard(shard_index)
        except OSError as error:
            raise UserError(
                f"{self._shards[shard_index]}: cannot be read: {error.strerror}. Correct the file or its permissions."
            ) from None
        if first is None or zlib.crc32(data[first[3] - self._set.layouts[first[1]].head : first[3]]) != first[4]:
            raise _stale_index(self._shards[shard_index])


def _build_set(paths: list[str]) -> tuple[TarSet, list[int]]:
    """Build the set of shards from their index files. Return it and the positions of the shards in it.

    Raises:
        UserError: If an index is missing, or two shards have the same clip.
    """
    indexes = [tar_index.read(path) for path in paths]
    try:
        return tar_set.build(indexes, paths), list(range(len(paths)))
    except ValueError as error:
        owners = [position for position, index in enumerate(indexes) for _ in index.ends]
        names = [name for index in indexes for name in split_names(index.ends, index.names)]
        first, second = (_shard_path(indexes[owners[index]], paths[owners[index]]) for index in error.args)
        name = names[error.args[0]]
        raise UserError(f"member '{name}.npy' is in both {first} and {second}. Remove one of them.") from None


def _shard_path(shard: TarIndex | tar_set.Shard, index: str) -> str:
    """Return the path of a shard, given its description and the path of its index."""
    return shard.tar or index.removesuffix(tar_index.SUFFIX)


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
    except NotImplementedError:
        # iopath cannot list this remote location.
        return []


def _glob(pattern: str) -> list[str]:
    folder, name = os.path.split(pattern)
    return sorted(map(str, Path(folder).glob(name)))


def _stale_index(shard: str) -> UserError:
    return UserError(
        f"{shard}: its index belongs to another shard or to an older version. Write it again: emollama pack --index '{shard}'"
    )

"""Tar shards as webdataset writes them, read by clip name through a sidecar index a shard (:mod:`emollama.stores.tar_index`).

A path names a folder of shards, one shard, or several: ``shards/train-{000..003}.tar``, ``shards/train-*.tar``. With one array a
clip a member is ``<name>.npy``. With several it is ``<name>.<slot>.npy``, and the path ends with the slot that is meant:
``shards/train-{000..003}.tar::face``. webdataset ends a name at its first dot; here a name is all that stands before ``.npy`` or
``.<slot>.npy``. Where every member has such a dot, a path without a slot is refused; one that ends with ``::`` means names
with dots in them.
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
from emollama.stores import tar_index
from emollama.stores.name_index import NameIndex, separated, table_of
from emollama.stores.tar_index import Layout, TarIndex

MAPS_KEPT = 128  # shards mapped at once by a store in a process; each takes a file descriptor
_TAR = (".tar", ".tar.gz", ".tgz")


def is_tars(path: str) -> bool:
    """Whether a path means tar shards: ends like a tar, or is a folder that holds tars or their indexes and no .npy files."""
    pattern, _ = split_slot(path)
    if pattern.endswith(_TAR):
        return True
    names = _listed(pattern)
    return any(name.endswith((*_TAR, tar_index.SUFFIX)) for name in names) and not any(name.endswith(".npy") for name in names)


def split_slot(path: str) -> tuple[str, str | None]:
    """``shards.tar::face`` -> ("shards.tar", "face"); the slot is None where there is no ``::``."""
    match = re.fullmatch(r"(.*)::([^/:\]]*)", path, re.DOTALL)
    return (match[1], match[2]) if match else (path, None)


def shards_of(pattern: str) -> list[str]:
    """The tars that a path without a slot means, in order; of a folder that has none the indexes.

    Raises:
        UserError: there are none, or the braces are not closed.
    """
    if names := sorted(_listed(pattern)):
        for ending in (".tar", tar_index.SUFFIX, *_TAR):
            if shards := [os.path.join(pattern, name) for name in names if name.endswith(ending)]:
                return shards
    if os.path.exists(pattern):
        return [pattern]
    try:
        expanded = list(braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError:
        raise UserError(f"{pattern}: its braces are not closed.") from None
    shards = [shard for part in expanded for shard in (_globbed(part) if "*" in part else [part])]
    if not shards:
        raise UserError(f"no tar '{pattern}' (seen from {os.getcwd()}). Correct the path.")
    return shards


def is_here(shard: str) -> bool:
    """Whether a shard lies on this machine; one that lies nowhere is an error.

    Raises:
        UserError: there is no such file, as far as can be told.
    """
    if os.path.isfile(shard):
        return True
    try:
        exists = PATHS.isfile(shard)
    except NotImplementedError:  # a remote place that cannot be asked
        exists = True
    if not exists:
        raise UserError(f"no tar '{shard}' (seen from {os.getcwd()}). Correct the path.")
    return False


class TarStore:
    """The arrays of tar shards by clip name. Fulfils ``emollama.stores.store.ArrayStore``.

    A shard is fetched (``PATHS.get_local_path``) and mapped at its first use in a process; those on this machine are also looked
    at when the store opens. A pickled store opens again where it is unpickled.
    """

    def __init__(self, path: str, slot: str | None, shards: list[str], indexes: list[TarIndex]) -> None:
        self.path, self._shards, self._indexes = path, shards, indexes
        self._suffix = f".{slot}" if slot else ""
        self._layouts, entries = _merged(indexes)
        try:
            self._index = NameIndex(table_of(entries).view(np.uint8).data, len(entries))
        except ValueError as error:
            name, places = self._twins(entries, error.args)
            raise UserError(f"member '{name}.npy' is in both {places[0]} and {places[1]}. Leave one of them out.") from None
        self._shard = functools.lru_cache(MAPS_KEPT)(self._mapped)

    @classmethod
    def open(cls, path: str) -> TarStore:
        """Read the indexes of the shards and compare them with those shards that lie on this machine.

        Raises:
            UserError: no shards; no index, or one of another shard; a clip in two shards; a slot that none has.
        """
        pattern, slot = split_slot(path)
        found = shards_of(pattern)
        if compressed := [shard for shard in found if not shard.endswith((".tar", tar_index.SUFFIX))]:
            raise UserError(f"{compressed[0]}: a compressed tar cannot be read at random places. Decompress it.")
        paths = [shard if shard.endswith(tar_index.SUFFIX) else shard + tar_index.SUFFIX for shard in found]
        for shard in found:
            is_here(shard)
        indexes = [tar_index.read(index) for index in paths]
        shards = [index.tar or at.removesuffix(tar_index.SUFFIX) for at, index in zip(paths, indexes, strict=True)]
        _check_slot(pattern, slot, indexes)
        store = cls(path, slot, shards, indexes)
        for number, shard in enumerate(shards):
            if is_here(shard):
                store._checked(number)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return TarStore.open, (self.path,)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name + self._suffix) is not None

    def names(self) -> Iterable[str]:
        """Every clip that has an array (of the slot), shard by shard."""
        for index in self._indexes:
            for name in separated(index.ends, index.names):
                if name.endswith(self._suffix):
                    yield name.removesuffix(self._suffix)

    def load(self, name: str) -> np.ndarray:
        """The clip's array, copied.

        Raises:
            OSError, ValueError: no such clip, or its shard cannot be fetched or is not the one that was indexed.
        """
        _, kind, number, offset, check = self._find(name)
        layout = self._layouts[kind]
        shard = self._shard(number)
        if zlib.crc32(shard[offset - layout.head : offset]) != check:
            raise _stale(self._shards[number])
        order: Any = "F" if layout.fortran else "C"
        array: np.ndarray = np.ndarray(layout.shape, layout.dtype, shard, offset, order=order).copy(order="K")
        return array

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype, from the index.

        Raises:
            OSError: no such clip.
        """
        layout = self._layouts[self._find(name)[1]]
        return layout.shape, layout.dtype

    def place(self, name: str) -> str:
        """Shard and member."""
        entry = self._index.find(name + self._suffix)
        return f"{self._shards[entry[2]] if entry else self.path}, {name}{self._suffix}.npy"

    def stamp(self, name: str) -> tuple[int, ...]:
        """Size and time of modification (0 for a remote one) of the shard, place in it, checksum of the headers.

        Raises:
            OSError: no such clip.
        """
        _, _, number, offset, check = self._find(name)
        try:
            changed = os.stat(self._shards[number]).st_mtime_ns
        except OSError:
            changed = 0
        return self._indexes[number].size, changed, offset, check

    def groups(self, names: Sequence[str]) -> np.ndarray | None:
        """(len(names),) int64 number of the shard in which each clip lies; -1 where there is none."""
        found = (self._index.find(name + self._suffix) for name in names)
        return np.fromiter((entry[2] if entry else -1 for entry in found), np.int64, len(names))

    def _find(self, name: str) -> tuple[bytes, int, int, int, int]:
        entry = self._index.find(name + self._suffix)
        if entry is None:
            raise FileNotFoundError(f"no member '{name}{self._suffix}.npy' in {self.path}")
        return entry

    def _mapped(self, number: int) -> mmap.mmap:
        with open(PATHS.get_local_path(self._shards[number]), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(data) != self._indexes[number].size:
            raise _stale(self._shards[number])
        return data

    def _checked(self, number: int) -> None:
        """Compare a shard's size and its first array's headers with the index."""
        first = self._indexes[number].entries[0]
        try:
            data = self._shard(number)
        except OSError as error:
            raise UserError(f"{self._shards[number]}: cannot be read: {error.strerror}.") from None
        head = self._indexes[number].layouts[first["kind"]].head
        if zlib.crc32(data[int(first["offset"]) - head : int(first["offset"])]) != first["check"]:
            raise _stale(self._shards[number])

    def _twins(self, entries: np.ndarray, rows: tuple[int, ...]) -> tuple[str, list[str]]:
        names = [name for index in self._indexes for name in separated(index.ends, index.names)]
        return names[rows[0]], [self._shards[entries["shard"][row]] for row in rows]


def _merged(indexes: list[TarIndex]) -> tuple[list[Layout], np.ndarray]:
    """The layouts and entries of all shards; entries point into these layouts and say their shard."""
    layouts: list[Layout] = []
    parts = []
    for number, index in enumerate(indexes):
        entries = index.entries.copy()
        entries["shard"] = number
        entries["kind"] += len(layouts)
        layouts += index.layouts
        parts.append(entries)
    return layouts, np.concatenate(parts)


def _check_slot(pattern: str, slot: str | None, indexes: list[TarIndex]) -> None:
    endings = {ending for index in indexes for ending in index.endings}
    shown = ", ".join(f".{ending}" for ending in sorted(endings)[:8])
    if slot and f"{slot}.npy" not in endings and not any(ending.endswith(f".{slot}.npy") for ending in endings):
        raise UserError(f"{pattern}::{slot}: no member ends with .{slot}.npy; they end with {shown}. Correct the slot.")
    if slot is None and "npy" not in endings:
        raise UserError(
            f"{pattern}: its members end with {shown}. Say which array of a clip is meant, as in "
            f"'{pattern}::{min(endings).removesuffix('.npy')}', or end the path with '::' if the dots belong to the clips' names."
        )


def _listed(path: str) -> list[str]:
    """The names in a folder; none where there is no folder."""
    try:
        return list(PATHS.ls(path)) if PATHS.isdir(path) else []
    except NotImplementedError:  # a remote place that cannot be listed
        return []


def _globbed(pattern: str) -> list[str]:
    folder, name = os.path.split(pattern)
    return sorted(map(str, Path(folder).glob(name)))


def _stale(shard: str) -> UserError:
    return UserError(
        f"{shard}: its index is of another shard or of an older state. Write it again: emollama pack --index '{shard}'"
    )

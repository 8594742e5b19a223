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
from emollama.stores import tar_index, tar_set
from emollama.stores.name_index import NameIndex, split_names
from emollama.stores.tar_index import TarIndex
from emollama.stores.tar_set import TarSet

MAX_OPEN_MAPS = 128  # shards mapped at once by a store in a process; each takes a file descriptor
_TAR = (".tar", ".tar.gz", ".tgz")


def is_tar_path(path: str) -> bool:
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


def list_shards(pattern: str) -> list[str]:
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
        raise UserError(f"no tar '{pattern}' (working folder: {os.getcwd()}). Correct the path.")
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
        raise UserError(f"no tar '{shard}' (working folder: {os.getcwd()}). Correct the path.")
    return False


class TarStore:
    """The arrays of tar shards by clip name. Fulfils ``emollama.stores.store.ArrayStore``.

    A shard is fetched (``PATHS.get_local_path``) and mapped at its first use in a process; those on this machine are also looked
    at when the store opens. A pickled store opens again where it is unpickled.
    """

    def __init__(self, path: str, slot: str | None, shards: list[str], held: tuple[TarSet, list[int]]) -> None:
        self.path, self._shards = path, shards
        self._set, self._numbers = held  # of the shards in the set
        self._suffix = f".{slot}" if slot else ""
        self._index = NameIndex(self._set.table, len(self._set.ends))
        self._places = np.full(len(self._set.shards) + 1, -1)  # number in the set -> in self._shards; -1 -> -1
        self._places[self._numbers] = np.arange(len(shards))
        self._shard = functools.lru_cache(MAX_OPEN_MAPS)(self._mapped)

    @classmethod
    def open(cls, path: str) -> TarStore:
        """Read the indexes of the shards and compare them with those shards that lie on this machine.

        Raises:
            UserError: no shards; no index, or one of another shard; a clip in two shards; a slot that none has.
        """
        pattern, slot = split_slot(path)
        found = list_shards(pattern)
        if compressed := [shard for shard in found if not shard.endswith((".tar", tar_index.SUFFIX))]:
            raise UserError(f"{compressed[0]}: a compressed tar cannot be read at random places. Decompress it.")
        paths = [shard if shard.endswith(tar_index.SUFFIX) else shard + tar_index.SUFFIX for shard in found]
        for shard in found:
            is_here(shard)
        held = tar_set.find_set(paths) or _built(paths)
        known = [held[0].shards[number] for number in held[1]]
        shards = [_shard_path(shard, index) for shard, index in zip(known, paths, strict=True)]
        _check_slot(pattern, slot, {ending for shard in known for ending in shard.endings})
        store = cls(path, slot, shards, held)
        for number, shard in enumerate(shards):
            if is_here(shard):
                store._checked(number)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return TarStore.open, (self.path,)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(name) is not None

    def names(self) -> Iterable[str]:
        """Every clip that has an array (of the slot), shard by shard."""
        for number in self._numbers:
            for name in self._set.names(number):
                if name.endswith(self._suffix):
                    yield name.removesuffix(self._suffix)

    def load(self, name: str) -> np.ndarray:
        """The clip's array, copied.

        Raises:
            OSError, ValueError: no such clip, or its shard cannot be fetched or is not the one that was indexed.
        """
        kind, number, offset, check = self._find(name)
        layout = self._set.layouts[kind]
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
        layout = self._set.layouts[self._find(name)[0]]
        return layout.shape, layout.dtype

    def location(self, name: str) -> str:
        """Shard and member."""
        entry = self._entry(name)
        return f"{self._shards[entry[1]] if entry else self.path}, {name}{self._suffix}.npy"

    def stamp(self, name: str) -> tuple[int, ...]:
        """The shard's size, times of modification and of change, and inode; the array's place in it. Empty for a remote one.

        Raises:
            OSError: no such clip.
        """
        _, number, offset, _ = self._find(name)
        try:
            status = os.stat(self._shards[number])
        except OSError:
            return ()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, offset

    def groups(self, names: Sequence[str]) -> np.ndarray | None:
        """(len(names),) int64 number of the shard in which each clip lies; -1 where there is none."""
        places: np.ndarray = self._places[self._index.shards([name + self._suffix for name in names] if self._suffix else names)]
        return places

    def _entry(self, name: str) -> tuple[int, int, int, int] | None:
        """(kind, number in ``_shards``, offset, check), or None."""
        found = self._index.find(name + self._suffix)
        if found is None or (place := int(self._places[found[2]])) < 0:
            return None
        return found[1], place, found[3], found[4]

    def _find(self, name: str) -> tuple[int, int, int, int]:
        entry = self._entry(name)
        if entry is None:
            raise FileNotFoundError(f"no member '{name}{self._suffix}.npy' in {self.path}")
        return entry

    def _mapped(self, number: int) -> mmap.mmap:
        with open(PATHS.get_local_path(self._shards[number]), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(data) != self._set.shards[self._numbers[number]].bytes:
            raise _stale(self._shards[number])
        return data

    def _checked(self, number: int) -> None:
        """Compare a shard's size and its first array's headers with the index."""
        first = self._index.find(next(self._set.names(self._numbers[number])))
        try:
            data = self._shard(number)
        except OSError as error:
            raise UserError(f"{self._shards[number]}: cannot be read: {error.strerror}.") from None
        if first is None or zlib.crc32(data[first[3] - self._set.layouts[first[1]].head : first[3]]) != first[4]:
            raise _stale(self._shards[number])


def _built(paths: list[str]) -> tuple[TarSet, list[int]]:
    """The set of shards from their sidecars, and their numbers in it.

    Raises:
        UserError: no sidecar, or a clip in two shards.
    """
    indexes = [tar_index.read(path) for path in paths]
    try:
        return tar_set.build(indexes, paths), list(range(len(paths)))
    except ValueError as error:
        owners = [number for number, index in enumerate(indexes) for _ in index.ends]
        names = [name for index in indexes for name in split_names(index.ends, index.names)]
        places = [_shard_path(indexes[owners[row]], paths[owners[row]]) for row in error.args]
        raise UserError(
            f"member '{names[error.args[0]]}.npy' is in both {places[0]} and {places[1]}. Leave one of them out."
        ) from None


def _shard_path(known: TarIndex | tar_set.Shard, index: str) -> str:
    """Where a shard lies."""
    return known.tar or index.removesuffix(tar_index.SUFFIX)


def _check_slot(pattern: str, slot: str | None, endings: set[str]) -> None:
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

"""The index of a set of tar shards: what their sidecars say, in one hash table that is mapped instead of read.

``train-000.tar.12.set`` stands beside the sidecars of twelve shards (:mod:`emollama.stores.tar_index`), of which
``train-000.tar`` is the first, and serves any of them. It is taken only while these sidecars are those from which it was made.
Where there is none, the same is built in memory, which takes seconds for a million arrays.

The file begins with 64 bytes that say what it is, how long the description is, and the CRC-32 of everything behind them; then
come the description in JSON, the table, where each name ends, and the names, shard by shard.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from emollama.paths import atomic_write
from emollama.stores import tar_index
from emollama.stores.name_index import build_table, extract_entries, map_columns, require_within, split_names
from emollama.stores.tar_index import Layout, TarIndex

SUFFIX = ".set"
_HEAD = struct.Struct("<8sQI44x")  # what it is, bytes of the description, checksum of everything behind
_MAGIC = b"emotars1"


class Shard(NamedTuple):
    """What a set knows of a shard.

    Attributes:
        sidecar: its file name.
        tar: where the shard lies, where that is not beside the sidecar; else None.
        bytes: of the shard.
        arrays: how many.
        endings: as in :class:`emollama.stores.tar_index.TarIndex`.
    """

    sidecar: str
    tar: str | None
    bytes: int
    arrays: int
    endings: dict[str, int]


@dataclass(frozen=True)
class TarSet:
    """The arrays of several shards.

    Attributes:
        shards: in the order in which entries number them.
        layouts: in the order in which entries number them.
        table: of all entries (:func:`emollama.stores.name_index.build_table`).
        ends, text: the names, joined, shard by shard.
    """

    shards: tuple[Shard, ...]
    layouts: tuple[Layout, ...]
    table: np.ndarray
    ends: np.ndarray
    text: np.ndarray

    def names(self, shard: int) -> Iterator[str]:
        """The names in a shard, as they stand there."""
        first = sum(before.arrays for before in self.shards[:shard])
        return split_names(self.ends, self.text, first, first + self.shards[shard].arrays)


def build(indexes: Sequence[TarIndex], paths: Sequence[str]) -> TarSet:
    """The set of these shards, in memory.

    Args:
        indexes: what the sidecars say.
        paths: of the sidecars.

    Raises:
        ValueError: a name stands there twice; its arguments are the numbers of both entries, counted over all shards.
    """
    layouts: list[Layout] = []
    entries = np.concatenate([index.entries for index in indexes])
    sizes = [len(index.entries) for index in indexes]
    entries["shard"] = np.repeat(np.arange(len(indexes)), sizes)
    entries["kind"] += np.repeat(np.cumsum([0, *(len(index.layouts) for index in indexes[:-1])]), sizes).astype(np.uint32)
    starts = np.repeat(np.cumsum([0, *(len(index.names) for index in indexes[:-1])]), sizes).astype(np.uint64)
    for index in indexes:
        layouts += index.layouts
    shards = tuple(
        Shard(os.path.basename(path), index.tar, index.size, len(index.entries), index.endings)
        for index, path in zip(indexes, paths, strict=True)
    )
    ends = np.concatenate([index.ends for index in indexes]) + starts
    return TarSet(shards, tuple(layouts), build_table(entries), ends, np.concatenate([index.names for index in indexes]))


def write(indexes: Sequence[TarIndex], paths: Sequence[str]) -> None:
    """Write the set of these shards beside their sidecars, which lie in one folder; nothing where a name stands in two shards.

    Such shards cannot be read together, so that there is no use for their set.
    """
    try:
        made = build(indexes, paths)
    except ValueError:
        return
    about = {
        "layouts": tar_index.layouts_to_json(made.layouts),
        "table_bytes": made.table.nbytes,
        "shards": [shard._asdict() for shard in made.shards],
        "seals": [tar_index.fingerprint(path) for path in paths],
    }
    raw = json.dumps(about).encode()
    parts: list[Any] = [raw + b" " * (-len(raw) % _HEAD.size)]
    parts += [part.view(np.uint8).data for part in (made.table, made.ends, made.text)]
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    with atomic_write(f"{paths[0].removesuffix(tar_index.SUFFIX)}.{len(paths)}{SUFFIX}", "wb") as file:
        file.write(_HEAD.pack(_MAGIC, len(parts[0]), check))
        file.writelines(parts)


def find_set(paths: Sequence[str]) -> tuple[TarSet, list[int]] | None:
    """A set that holds all these sidecars as they are, and their numbers in it; None where no such set stands beside them."""
    folders = {os.path.dirname(path) for path in paths}
    if len(folders) > 1 or len(set(paths)) < len(paths) or not all(map(os.path.isfile, paths)):
        return None
    folder = folders.pop() or os.curdir
    names = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(SUFFIX)]
    for name in sorted(names, key=os.path.getsize):
        try:
            if found := _opened(name, paths):
                return found
        except (OSError, ValueError, LookupError, TypeError, OverflowError, struct.error):  # damaged: the sidecars serve as well
            continue
    return None


def _opened(path: str, asked: Sequence[str]) -> tuple[TarSet, list[int]] | None:
    """The set in a file, if it holds what is asked for.

    Raises:
        OSError, ValueError, LookupError, TypeError, OverflowError, struct.error: it is damaged.
    """
    with open(path, "rb") as file:
        magic, size, check = _HEAD.unpack(file.read(_HEAD.size))
        if magic != _MAGIC:
            return None
        about: dict[str, Any] = json.loads(file.read(size))
        shards = tuple(Shard(**shard) for shard in about["shards"])
        numbers = {shard.sidecar: number for number, shard in enumerate(shards)}
        for name in asked:
            number = numbers.get(os.path.basename(name))
            if number is None or about["seals"][number] != tar_index.fingerprint(name):
                return None
        raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if zlib.crc32(memoryview(raw)[_HEAD.size :]) != check:
        raise ValueError("its checksum is not the one that was written")
    layouts, count = tar_index.layouts_from_json(about["layouts"]), sum(shard.arrays for shard in shards)
    found = TarSet(shards, layouts, *map_columns(raw, _HEAD.size + size, about["table_bytes"], count))
    require_within(extract_entries(found.table, count), [layout.nbytes for layout in layouts], [shard.bytes for shard in shards])
    return found, [numbers[os.path.basename(name)] for name in asked]

"""The index of a set of tar shards: one hash table of all their indexes, which is memory-mapped instead of read.

``train-000.tar.12.set`` is next to the indexes of twelve shards (:mod:`emollama.stores.tar_index`), of which ``train-000.tar``
is the first, and serves any subset of them. It is used only if these indexes have not changed since it was written. Without such
a file, the set is built in memory, which takes seconds for a million arrays.

The file starts with 64 bytes: magic number, length of the description, and CRC-32 of everything after these bytes. Then follow
the description in JSON, the table, the end of each name, and the names, shard by shard.
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
_HEAD = struct.Struct("<8sQI44x")  # magic number, length of the description, checksum of the rest
_MAGIC = b"emotars1"


class Shard(NamedTuple):
    """Description of a shard in a set.

    Attributes:
        sidecar: file name of the shard's index.
        tar: path of the shard; None if the shard is next to its index.
        bytes: size of the shard.
        arrays: number of arrays.
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
        shards: the shards; entries refer to them by position.
        layouts: the layouts of the arrays; entries refer to them by position.
        table: hash table of all entries (:func:`emollama.stores.name_index.build_table`).
        ends, text: the concatenated names, shard by shard.
    """

    shards: tuple[Shard, ...]
    layouts: tuple[Layout, ...]
    table: np.ndarray
    ends: np.ndarray
    text: np.ndarray

    def names(self, shard: int) -> Iterator[str]:
        """Return the names in a shard, in the order of its members."""
        first = sum(before.arrays for before in self.shards[:shard])
        return split_names(self.ends, self.text, first, first + self.shards[shard].arrays)


def build(indexes: Sequence[TarIndex], paths: Sequence[str]) -> TarSet:
    """Build the set of these shards in memory.

    Args:
        indexes: the indexes of the shards.
        paths: the paths of the index files.

    Raises:
        ValueError: If a name appears twice; the arguments of the error are the positions of both entries, counted over all
            shards.
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
    """Write the set of these shards into the folder of their index files.

    Nothing is written if a name is in two shards, because such shards cannot be read together.
    """
    try:
        tar_set = build(indexes, paths)
    except ValueError:
        return
    metadata = {
        "layouts": tar_index.layouts_to_json(tar_set.layouts),
        "table_bytes": tar_set.table.nbytes,
        "shards": [shard._asdict() for shard in tar_set.shards],
        "seals": [tar_index.fingerprint(path) for path in paths],
    }
    raw = json.dumps(metadata).encode()
    parts: list[Any] = [raw + b" " * (-len(raw) % _HEAD.size)]
    parts += [part.view(np.uint8).data for part in (tar_set.table, tar_set.ends, tar_set.text)]
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    with atomic_write(f"{paths[0].removesuffix(tar_index.SUFFIX)}.{len(paths)}{SUFFIX}", "wb") as file:
        file.write(_HEAD.pack(_MAGIC, len(parts[0]), check))
        file.writelines(parts)


def find_set(paths: Sequence[str]) -> tuple[TarSet, list[int]] | None:
    """Find a set file next to these index files that contains all of them unchanged. Return the set and their positions in it."""
    folders = {os.path.dirname(path) for path in paths}
    if len(folders) > 1 or len(set(paths)) < len(paths) or not all(map(os.path.isfile, paths)):
        return None
    folder = folders.pop() or os.curdir
    names = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(SUFFIX)]
    for name in sorted(names, key=os.path.getsize):
        try:
            if result := _open(name, paths):
                return result
        except (OSError, ValueError, LookupError, TypeError, OverflowError, struct.error):
            # A damaged set file is ignored, because the set can be built from the index files.
            continue
    return None


def _open(path: str, index_paths: Sequence[str]) -> tuple[TarSet, list[int]] | None:
    """Open a set file; None if it does not contain these index files as they are.

    Raises:
        OSError, ValueError, LookupError, TypeError, OverflowError, struct.error: the file is damaged.
    """
    with open(path, "rb") as file:
        magic, size, check = _HEAD.unpack(file.read(_HEAD.size))
        if magic != _MAGIC:
            return None
        metadata: dict[str, Any] = json.loads(file.read(size))
        shards = tuple(Shard(**shard) for shard in metadata["shards"])
        shard_indices = {shard.sidecar: index for index, shard in enumerate(shards)}
        for name in index_paths:
            shard_index = shard_indices.get(os.path.basename(name))
            if shard_index is None or metadata["seals"][shard_index] != tar_index.fingerprint(name):
                return None
        raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if zlib.crc32(memoryview(raw)[_HEAD.size :]) != check:
        raise ValueError("its checksum differs from the recorded one")
    layouts, count = tar_index.layouts_from_json(metadata["layouts"]), sum(shard.arrays for shard in shards)
    tar_set = TarSet(shards, layouts, *map_columns(raw, _HEAD.size + size, metadata["table_bytes"], count))
    entries = extract_entries(tar_set.table, count)
    require_within(entries, [layout.nbytes for layout in layouts], [shard.bytes for shard in shards])
    return tar_set, [shard_indices[os.path.basename(name)] for name in index_paths]

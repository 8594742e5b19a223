"""One index of several tar shards, built from the index files of the shards (:mod:`emollama.stores.tar_index`).

It is in the user's cache folder, and is built again if one of these files has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from emollama.errors import UserError
from emollama.stores import tar_index
from emollama.stores.index import Index, Location, RepeatedName, build, open_cached
from emollama.stores.tar_index import Layout, TarIndex

# Version of the description in a cached index. Other versions of this package cannot read it.
_FORMAT = 2


class Shard(NamedTuple):
    """Description of a shard.

    Attributes:
        tar: path of the shard; None if the shard is next to its index file.
        bytes: size of the shard.
        endings: as in :class:`emollama.stores.tar_index.TarIndex`.
        first: name of its first array.
        skipped: as in :class:`emollama.stores.tar_index.TarIndex`.
    """

    tar: str | None
    bytes: int
    endings: dict[str, int]
    first: str
    skipped: dict[str, int]


@dataclass(frozen=True)
class TarSet:
    """Several shards and the index of all their arrays.

    Attributes:
        shards: the shards; locations refer to them by position.
        layouts: the layouts of the arrays; locations refer to them by position.
        index: the index.
        digest: hash of the names and values of all arrays; None if an index file has no checksums of values.
    """

    shards: list[Shard]
    layouts: tuple[Layout, ...]
    index: Index
    digest: str | None


def open_set(paths: Sequence[str]) -> TarSet:
    """Open the index of several shards, and build it if it is not in the user's cache folder.

    Args:
        paths: the index files of the shards.

    Raises:
        UserError: If an index file is missing or damaged, or two shards have the same clip.
    """
    key = hashlib.sha256(json.dumps([_FORMAT, *(tar_index.fingerprint(path) for path in paths)]).encode()).hexdigest()
    index = open_cached(key, lambda: _build(paths))
    shards = [Shard(*shard) for shard in index.description["shards"]]
    layouts = tar_index.layouts_from_json(index.description["layouts"])
    return TarSet(shards, layouts, index, index.description["digest"])


def shard_path(shard: Shard | TarIndex, path: str) -> str:
    """Return the path of a shard, given the path of its index file."""
    return shard.tar or path.removesuffix(tar_index.SUFFIX)


def _build(paths: Sequence[str]) -> bytes:
    files = [tar_index.read(path) for path in paths]
    description = {
        "shards": [Shard(shard.tar, shard.size, shard.endings, shard.names[0], shard.skipped) for shard in files],
        "layouts": tar_index.layouts_to_json([layout for shard in files for layout in shard.layouts]),
        "digest": _digest(files),
    }
    try:
        return build(_locations(files), description)
    except RepeatedName as error:
        first, second = (shard_path(files[shard], paths[shard]) for shard in error.shards)
        raise UserError(f"member '{error.name}.npy' is in both {first} and {second}. Remove one of them.") from None


def _digest(files: Sequence[TarIndex]) -> str | None:
    """Return a hash of the names and values of all arrays; None if an index has no checksums of values."""
    digest = hashlib.sha256()
    for shard in files:
        if shard.checksums is None:
            return None
        arrays = [[layout.shape, layout.dtype.str, layout.fortran] for layout in shard.layouts]
        digest.update(json.dumps([arrays, shard.names]).encode())
        digest.update(shard.entries["kind"].tobytes() + shard.checksums.tobytes())
    return digest.hexdigest()[:16]


def _locations(files: Sequence[TarIndex]) -> Iterator[tuple[str, Location]]:
    num_layouts = 0
    for shard_index, shard in enumerate(files):
        columns = (shard.entries[field].tolist() for field in ("offset", "kind", "check"))
        for name, offset, kind, checksum in zip(shard.names, *columns, strict=True):
            yield name, Location(shard_index, offset, num_layouts + kind, checksum)
        num_layouts += len(shard.layouts)

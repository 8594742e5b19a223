"""Tar shards at remote locations whose arrays are read from the server when they are needed (``stream: True``)."""

from __future__ import annotations

import functools
import json
import zlib

import numpy as np

from emollama.errors import DownloadError, UserError
from emollama.remote.manager import is_remote
from emollama.remote.streaming import StreamedFile, cache_gib
from emollama.stores import tar_index
from emollama.stores.index import Location
from emollama.stores.tar_set import TarSet
from emollama.stores.tars import MAX_OPEN_MAPS, TarStore, stale_index


class StreamedTarStore(TarStore):
    """A :class:`TarStore` that does not download remote shards. Each array is compared with its checksums when it is read.

    Shards on this machine are read as in the base class.
    """

    def __init__(self, path: str, slot: str | None, shards: list[str], indexes: list[str], tar_set: TarSet) -> None:
        super().__init__(path, slot, shards, indexes, tar_set)
        self._file = functools.cache(self._open_file)
        self._fingerprint = functools.cache(lambda shard_index: tar_index.fingerprint(self._indexes[shard_index]))
        self._expected = functools.lru_cache(MAX_OPEN_MAPS)(self._read_expected)
        self._unreachable: dict[int, DownloadError] = {}

    @property
    def remote_shards(self) -> list[str]:
        """The shards that are streamed."""
        return [shard for shard in self._shards if is_remote(shard)]

    @property
    def shard_bytes(self) -> list[int]:
        """Size of each shard that is streamed."""
        return [about.bytes for about, shard in zip(self._descriptions, self._shards, strict=True) if is_remote(shard)]

    @property
    def shards_to_download(self) -> list[str]:
        """No shards."""
        return []

    def read_ahead(self, name: str) -> None:
        """Read a clip's array into the cache in the background."""
        location = self._index.find(name + self._suffix)
        if location is not None and is_remote(self._shards[location.shard]):
            self._file(location.shard).read_ahead(*self._extent(location))

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return numbers that differ if the index of the shard differs, and the array's offset.

        Raises:
            OSError: If the clip does not exist.
        """
        location = self._find(name)
        shard = self._shards[location.shard]
        if not is_remote(shard):
            return super().stamp(name)
        size, checksum = self._fingerprint(location.shard)
        return self._descriptions[location.shard].bytes, size, checksum, zlib.crc32(shard.encode()), location.offset

    def files_stamp(self) -> tuple[int, ...]:
        """Return the digest of all values, with which each array is compared when it is read; empty without a digest."""
        return () if self.values_digest is None or self.remote_shards != self._shards else (int(self.values_digest, 16),)

    def is_intact(self, name: str) -> bool | None:
        """Return whether a clip's headers and values have the checksums in the index file.

        Raises:
            OSError: If the clip does not exist.
            DownloadError: If the array cannot be read.
        """
        location = self._find(name)
        if not is_remote(self._shards[location.shard]):
            return super().is_intact(name)
        return self._has_checksums(location, self._read(location))

    def _check_shards(self, is_known: bool) -> None:
        """Require checksums, and read an array, so that a server that cannot be used is noticed at the start."""
        super()._check_shards(is_known)
        remote = [number for number, shard in enumerate(self._shards) if is_remote(shard)]
        if remote and not is_known:
            cache_gib()
            self._check_shard(remote[0])

    def _member(self, location: Location) -> memoryview | bytes:
        shard = self._shards[location.shard]
        if not is_remote(shard):
            return super()._member(location)
        member = self._read(location)
        if not self._has_checksums(location, member):
            raise stale_index(shard)
        return member

    def _read(self, location: Location) -> bytes:
        """Read an array from the cache or the server, and from the server again if its checksums are wrong."""
        if location.shard in self._unreachable:
            raise self._unreachable[location.shard]
        file = self._file(location.shard)
        try:
            member = file.read(*self._extent(location))
            return member if self._has_checksums(location, member) else file.read_again(*self._extent(location))
        except DownloadError as error:
            # Several attempts failed. Each array of the shard would take as long.
            self._unreachable[location.shard] = error
            raise

    def _has_checksums(self, location: Location, member: bytes) -> bool:
        layout = self._layouts[location.kind]
        offsets, checksums = self._expected(location.shard)
        row = int(np.searchsorted(offsets, location.offset))
        head, values = memoryview(member)[: layout.head], memoryview(member)[layout.head :]
        return (zlib.crc32(head), zlib.crc32(values)) == (location.checksum, int(checksums[row]))

    def _extent(self, location: Location) -> tuple[int, int]:
        """Return the position of an array's headers in its shard, and the size of headers and values."""
        layout = self._layouts[location.kind]
        return location.offset - layout.head, layout.head + layout.nbytes

    def _open_file(self, shard_index: int) -> StreamedFile:
        content = json.dumps(self._fingerprint(shard_index))
        return StreamedFile(self._shards[shard_index], self._descriptions[shard_index].bytes, content)

    def _read_expected(self, shard_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the (n,) offsets of the arrays in a shard, ascending, and the checksums of their values."""
        index = tar_index.read(self._indexes[shard_index])
        if index.checksums is None:
            path = self._indexes[shard_index]
            command = f"emollama pack --index '{self._shards[shard_index]}'"
            raise UserError(f"{path}: this index has no checksums, which streaming needs. Write it again: {command}")
        order = np.argsort(index.entries["offset"])
        return index.entries["offset"][order], index.checksums[order]


def is_streamed(store: object) -> bool:
    """Return whether a store reads arrays from servers."""
    return isinstance(store, StreamedTarStore) and bool(store.remote_shards)

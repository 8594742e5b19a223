"""A hash table from clip names to the locations of their arrays, in memory or in a memory-mapped file.

A look-up in a mapped file reads only the entry that it needs. An entry has 64 bytes, the size of a CPU cache line, and starts
with a key, which is the name itself or the digest of a long name. Its position is the CRC-32 of its key modulo the number of
buckets, or the first free bucket after that. The table ends with an empty entry.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from mmap import mmap

import numpy as np

KEY_BYTES = 44
# An entry has the name's key, the number of the array's kind, its shard, its offset there, and the CRC-32 of bytes of the shard
# by which a changed shard is detected.
ENTRY = np.dtype([("key", f"S{KEY_BYTES}"), ("kind", "<u4"), ("shard", "<u4"), ("offset", "<u8"), ("check", "<u4")])
_ENTRY_BYTES = ENTRY.itemsize
_UNPACK = struct.Struct(f"<{KEY_BYTES}sIIQI").unpack_from
_EMPTY = bytes(KEY_BYTES)
# The last byte of a key is the length of the name plus 1, or 255 for a digest.
_LENGTHS = [bytes([length + 1]) for length in range(KEY_BYTES)]
_LONG = b"\xff"
_FAR = 2**62  # bytes; larger than any file


def make_entries(names: Sequence[str]) -> np.ndarray:
    """Return (n,) entries with the keys of these names and all other fields zero."""
    entries = np.zeros(len(names), ENTRY)
    entries["key"] = make_keys(names)
    return entries


def make_keys(names: Sequence[str]) -> np.ndarray:
    """Return the (n,) keys of these names."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    keys = np.array(raw, f"S{KEY_BYTES}")
    lengths = np.fromiter(map(len, raw), np.int64, len(raw))
    keys.view(np.uint8).reshape(-1, KEY_BYTES)[:, -1] = lengths + 1
    for index in np.flatnonzero(lengths >= KEY_BYTES):
        keys[index] = _key(raw[index])
    return keys


def build_table(entries: np.ndarray) -> np.ndarray:
    """Build the hash table of n entries, with 2 n + 1 buckets and a few more at the end.

    Raises:
        ValueError: If two entries have the same name; the arguments of the error are their indices.
    """
    home = _home_buckets(entries["key"], bucket_count(len(entries)))
    order = np.argsort(home, kind="stable")
    home = home[order]
    _reject_duplicates(entries["key"], home, order)
    steps = np.arange(len(entries))
    # Linear probing in order of the home buckets: the home bucket, or the bucket after that of the previous entry.
    bucket = np.maximum.accumulate(home - steps) + steps
    table = np.zeros(max(bucket_count(len(entries)), int(bucket[-1]) + 1) + 1, ENTRY)
    table[bucket] = entries[order]
    return table


def extract_entries(table: np.ndarray, count: int) -> np.ndarray:
    """Return the (count,) entries of a table.

    Raises:
        ValueError: If the table has another number of entries, or a search in it would not end.
    """
    full = table.view(np.uint8).reshape(len(table), _ENTRY_BYTES)[:, KEY_BYTES - 1] != 0
    if not count or np.count_nonzero(full) != count or len(table) <= bucket_count(count) or full[-1]:
        raise ValueError(f"the index is not a table of {count} arrays")
    entries: np.ndarray = table[full]
    return entries


def require_within(entries: np.ndarray, array_bytes: Sequence[int], shard_bytes: Sequence[int]) -> None:
    """Check that all entries point to arrays inside their shards.

    Args:
        entries: (n,) entries, n > 0.
        array_bytes: size of an array of each kind.
        shard_bytes: size of each shard.

    Raises:
        ValueError: If an entry has an unknown kind or shard, or points beyond the end of its shard.
    """
    kinds, shards = entries["kind"], entries["shard"]
    if kinds.max() >= len(array_bytes) or shards.max() >= len(shard_bytes):
        raise ValueError("an entry has an unknown kind or shard")
    sizes = np.array([min(size, _FAR) for size in array_bytes], np.int64)
    room = np.array([min(size, _FAR) for size in shard_bytes], np.int64)[shards] - sizes[kinds]
    if room.min() < 0 or (entries["offset"] > room.astype(np.uint64)).any():
        raise ValueError("an array is beyond the end of its shard")


def bucket_count(count: int) -> int:
    """Return the number of buckets for a number of names."""
    return 2 * count | 1


class NameIndex:
    """Look-ups in a hash table.

    Args:
        table: a table of :func:`build_table`, in memory or mapped.
        count: number of its entries.
    """

    def __init__(self, table: np.ndarray, count: int) -> None:
        self._entries = table
        self._table = table.view(np.uint8).data
        self._buckets = bucket_count(count)

    def find(self, name: str) -> tuple[bytes, int, int, int, int] | None:
        """Return (key, kind, shard, offset, check) of a name, or None."""
        key = _key(name.encode("utf-8", "surrogateescape"))
        offset = zlib.crc32(key) % self._buckets * _ENTRY_BYTES
        entry = _UNPACK(self._table, offset)
        while entry[0] != key:
            if entry[0] == _EMPTY:
                return None
            offset += _ENTRY_BYTES
            entry = _UNPACK(self._table, offset)
        return entry

    def shards(self, names: Sequence[str]) -> np.ndarray:
        """Return the (n,) int64 shard of each name, -1 for unknown names."""
        keys = make_keys(names)
        buckets = _home_buckets(keys, self._buckets)
        shards = np.full(len(names), -1, np.int64)
        remaining = np.arange(len(names))
        while remaining.size:
            stored = self._entries["key"][buckets]
            hit = stored == keys
            shards[remaining[hit]] = self._entries["shard"][buckets[hit]]
            onward = ~hit & (stored != b"")
            remaining, keys, buckets = remaining[onward], keys[onward], buckets[onward] + 1
        return shards


def join_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate names. Return the (n,) uint64 end of each name, and the bytes."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    return np.cumsum([len(name) for name in raw], dtype=np.uint64), np.frombuffer(b"".join(raw), np.uint8)


def map_columns(raw: mmap, begin: int, table_bytes: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return views of a mapped file that contains a table and concatenated names: the table, the ends of the names, their bytes.

    Raises:
        ValueError, TypeError: If the file does not have this content.
    """
    table = np.frombuffer(raw, np.uint8, table_bytes, begin).view(ENTRY)
    ends = np.frombuffer(raw, np.uint64, count, begin + table_bytes)
    text = np.frombuffer(raw, np.uint8, offset=begin + table_bytes + ends.nbytes)
    if not len(ends) or ends[-1] != len(text) or (ends[1:] < ends[:-1]).any():
        raise ValueError(f"the table is not followed by the names of {count} arrays")
    return table, ends, text


def split_names(ends: np.ndarray, text: np.ndarray, first: int = 0, last: int | None = None) -> Iterator[str]:
    """Yield the names from ``first`` to before ``last`` that :func:`join_names` concatenated."""
    stops = [int(ends[first - 1]) if first else 0, *ends[first:last].tolist()]
    raw, start = text[stops[0] : stops[-1]].tobytes(), stops[0]
    for begin, end in pairwise(stops):
        yield raw[begin - start : end - start].decode("utf-8", "surrogateescape")


def _key(raw: bytes) -> bytes:
    if len(raw) < KEY_BYTES:
        return raw.ljust(KEY_BYTES - 1, b"\0") + _LENGTHS[len(raw)]
    return hashlib.blake2b(raw, digest_size=KEY_BYTES - 1).digest() + _LONG


def _home_buckets(keys: np.ndarray, buckets: int) -> np.ndarray:
    """Return the (n,) int64 bucket of each key if there are no collisions."""
    checksums = np.fromiter(map(zlib.crc32, keys.tolist()), np.uint64, len(keys))
    return (checksums % np.uint64(buckets)).astype(np.int64)


def _reject_duplicates(keys: np.ndarray, home: np.ndarray, order: np.ndarray) -> None:
    """Raise if two keys are equal.

    Equal keys have the same home bucket, and home buckets are sorted. Neighbours are compared first, then entries at distance
    2, 3 and so on.
    """
    distance = 1
    while (shared := np.flatnonzero(home[distance:] == home[:-distance])).size:
        first, second = order[shared], order[shared + distance]
        equal = np.flatnonzero(keys[first] == keys[second])
        if equal.size:
            raise ValueError(int(first[equal[0]]), int(second[equal[0]]))
        distance += 1

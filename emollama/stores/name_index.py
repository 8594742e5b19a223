"""Names -> places: a hash table that lies flat in memory or in a memory-mapped file, looked up without reading the rest of it.

An entry fills 64 bytes, a line of a CPU's cache, and begins with a key that is the name itself (of a long name a digest), so
that one look touches one line. It stands at the CRC-32 of its key modulo the number of slots, or in the first free slot after
that. The table ends with an empty entry.
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
ENTRY = np.dtype(
    [("key", f"S{KEY_BYTES}"), ("kind", "<u4"), ("shard", "<u4"), ("offset", "<u8"), ("check", "<u4")]
)  # what the array is, where it begins, and the CRC-32 of bytes that prove it
_ENTRY_BYTES = ENTRY.itemsize
_UNPACK = struct.Struct(f"<{KEY_BYTES}sIIQI").unpack_from
_EMPTY = bytes(KEY_BYTES)
_LENGTHS = [bytes([length + 1]) for length in range(KEY_BYTES)]  # the last byte of a key: of a name of so many bytes
_LONG = b"\xff"  # of a digest
_FAR = 2**62  # bytes; no file is as long


def make_entries(names: Sequence[str]) -> np.ndarray:
    """(n,) entries with their keys set and everything else zero."""
    entries = np.zeros(len(names), ENTRY)
    entries["key"] = make_keys(names)
    return entries


def make_keys(names: Sequence[str]) -> np.ndarray:
    """(n,) keys."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    keys = np.array(raw, f"S{KEY_BYTES}")
    lengths = np.fromiter(map(len, raw), np.int64, len(raw))
    keys.view(np.uint8).reshape(-1, KEY_BYTES)[:, -1] = lengths + 1
    for place in np.flatnonzero(lengths >= KEY_BYTES):
        keys[place] = _key(raw[place])
    return keys


def build_table(entries: np.ndarray) -> np.ndarray:
    """The hash table of n entries: 2 n + 1 slots, half of them full, and a few more.

    Raises:
        ValueError: a name stands there twice; its arguments are the numbers of both entries.
    """
    home = _homes(entries["key"], slot_count(len(entries)))
    order = np.argsort(home, kind="stable")
    home = home[order]
    _refuse_twins(entries["key"], home, order)
    steps = np.arange(len(entries))
    slot = np.maximum.accumulate(home - steps) + steps  # the home, or the first slot after the one before
    table = np.zeros(max(slot_count(len(entries)), int(slot[-1]) + 1) + 1, ENTRY)
    table[slot] = entries[order]
    return table


def extract_entries(table: np.ndarray, count: int) -> np.ndarray:
    """(count,) entries of a table.

    Raises:
        ValueError: it holds another number of them, or a search in it would not end.
    """
    full = table.view(np.uint8).reshape(len(table), _ENTRY_BYTES)[:, KEY_BYTES - 1] != 0
    if not count or np.count_nonzero(full) != count or len(table) <= slot_count(count) or full[-1]:
        raise ValueError(f"its table is not one of {count} arrays")
    entries: np.ndarray = table[full]
    return entries


def require_within(entries: np.ndarray, array_bytes: Sequence[int], shard_bytes: Sequence[int]) -> None:
    """Check that entries point at arrays which lie within their shards.

    Args:
        entries: (n,), n > 0.
        array_bytes: of the arrays of each kind.
        shard_bytes: of each shard.

    Raises:
        ValueError: they do not.
    """
    kinds, shards = entries["kind"], entries["shard"]
    if kinds.max() >= len(array_bytes) or shards.max() >= len(shard_bytes):
        raise ValueError("it names kinds or shards that there are not")
    sizes = np.array([min(size, _FAR) for size in array_bytes], np.int64)
    room = np.array([min(size, _FAR) for size in shard_bytes], np.int64)[shards] - sizes[kinds]
    if room.min() < 0 or (entries["offset"] > room.astype(np.uint64)).any():
        raise ValueError("arrays beyond the end of the shard")


def slot_count(count: int) -> int:
    """How many slots the names are spread over."""
    return 2 * count | 1


class NameIndex:
    """Lookups in a table.

    Args:
        table: of :func:`build_table`, in memory or mapped.
        count: of the entries in it.
    """

    def __init__(self, table: np.ndarray, count: int) -> None:
        self._rows = table
        self._table = table.view(np.uint8).data
        self._slots = slot_count(count)

    def find(self, name: str) -> tuple[bytes, int, int, int, int] | None:
        """(key, kind, shard, offset, check) of a name, or None."""
        key = _key(name.encode("utf-8", "surrogateescape"))
        place = zlib.crc32(key) % self._slots * _ENTRY_BYTES
        entry = _UNPACK(self._table, place)
        while entry[0] != key:
            if entry[0] == _EMPTY:
                return None
            place += _ENTRY_BYTES
            entry = _UNPACK(self._table, place)
        return entry

    def shards(self, names: Sequence[str]) -> np.ndarray:
        """(n,) int64 shard of each of many names, -1 where there is none."""
        keys = make_keys(names)
        row = _homes(keys, self._slots)
        shards = np.full(len(names), -1, np.int64)
        asked = np.arange(len(names))  # the names that are still looked for
        while asked.size:
            there = self._rows["key"][row]
            hit = there == keys
            shards[asked[hit]] = self._rows["shard"][row[hit]]
            onward = ~hit & (there != b"")
            asked, keys, row = asked[onward], keys[onward], row[onward] + 1
        return shards


def join_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The names one after another: (n,) uint64 where each ends, and their bytes."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    return np.cumsum([len(name) for name in raw], dtype=np.uint64), np.frombuffer(b"".join(raw), np.uint8)


def map_columns(raw: mmap, begin: int, table_bytes: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A table and joined names as they lie one after another in a file: the table, where each name ends, their bytes.

    Raises:
        ValueError, TypeError: they do not lie there.
    """
    table = np.frombuffer(raw, np.uint8, table_bytes, begin).view(ENTRY)
    ends = np.frombuffer(raw, np.uint64, count, begin + table_bytes)
    text = np.frombuffer(raw, np.uint8, offset=begin + table_bytes + ends.nbytes)
    if not len(ends) or ends[-1] != len(text) or (ends[1:] < ends[:-1]).any():
        raise ValueError(f"no names of {count} arrays behind the table")
    return table, ends, text


def split_names(ends: np.ndarray, text: np.ndarray, first: int = 0, last: int | None = None) -> Iterator[str]:
    """What :func:`join_names` joined; of it the names from ``first`` to before ``last``."""
    stops = [int(ends[first - 1]) if first else 0, *ends[first:last].tolist()]
    raw, start = text[stops[0] : stops[-1]].tobytes(), stops[0]
    for begin, end in pairwise(stops):
        yield raw[begin - start : end - start].decode("utf-8", "surrogateescape")


def _key(raw: bytes) -> bytes:
    if len(raw) < KEY_BYTES:
        return raw.ljust(KEY_BYTES - 1, b"\0") + _LENGTHS[len(raw)]
    return hashlib.blake2b(raw, digest_size=KEY_BYTES - 1).digest() + _LONG


def _homes(keys: np.ndarray, slots: int) -> np.ndarray:
    """(n,) int64 slot at which each entry would like to stand."""
    checksums = np.fromiter(map(zlib.crc32, keys.tolist()), np.uint64, len(keys))
    return (checksums % np.uint64(slots)).astype(np.int64)


def _refuse_twins(keys: np.ndarray, home: np.ndarray, order: np.ndarray) -> None:
    """Equal keys share a home, and homes are sorted: compare neighbours, then those two apart, and so on."""
    distance = 1
    while (shared := np.flatnonzero(home[distance:] == home[:-distance])).size:
        first, second = order[shared], order[shared + distance]
        twins = np.flatnonzero(keys[first] == keys[second])
        if twins.size:
            raise ValueError(int(first[twins[0]]), int(second[twins[0]]))
        distance += 1

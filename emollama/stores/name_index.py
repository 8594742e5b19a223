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


def entries_of(names: Sequence[str]) -> np.ndarray:
    """(n,) entries with their keys set and everything else zero."""
    entries = np.zeros(len(names), ENTRY)
    entries["key"] = [_key(name) for name in names]
    return entries


def table_of(entries: np.ndarray) -> np.ndarray:
    """The hash table of n entries: 2 n + 1 slots, half of them full, and a few more.

    Raises:
        ValueError: a name stands there twice; its arguments are the numbers of both entries.
    """
    home = _homes(entries["key"], slots_of(len(entries)))
    order = np.argsort(home, kind="stable")
    home = home[order]
    _refuse_twins(entries["key"], home, order)
    steps = np.arange(len(entries))
    slot = np.maximum.accumulate(home - steps) + steps  # the home, or the first slot after the one before
    table = np.zeros(max(slots_of(len(entries)), int(slot[-1]) + 1) + 1, ENTRY)
    table[slot] = entries[order]
    return table


def slots_of(count: int) -> int:
    """How many slots the names are spread over."""
    return 2 * count | 1


class NameIndex:
    """Lookups in a table.

    Args:
        table: the bytes of :func:`table_of`; what follows them is not looked at.
        count: of the entries in it.
    """

    def __init__(self, table: mmap | memoryview, count: int) -> None:
        self._table = table
        self._slots = slots_of(count)

    def find(self, name: str) -> tuple[bytes, int, int, int, int] | None:
        """(key, kind, shard, offset, check) of a name, or None."""
        key = _key(name)
        place = zlib.crc32(key) % self._slots * _ENTRY_BYTES
        entry = _UNPACK(self._table, place)
        while entry[0] != key:
            if entry[0] == _EMPTY:
                return None
            place += _ENTRY_BYTES
            entry = _UNPACK(self._table, place)
        return entry


def joined(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The names one after another: (n,) uint64 where each ends, and their bytes."""
    raw = [name.encode("utf-8", "surrogateescape") for name in names]
    return np.cumsum([len(name) for name in raw], dtype=np.uint64), np.frombuffer(b"".join(raw), np.uint8)


def separated(ends: np.ndarray, text: np.ndarray) -> Iterator[str]:
    """What :func:`joined` joined."""
    raw, begin = text.tobytes(), 0
    for end in ends.tolist():
        yield raw[begin:end].decode("utf-8", "surrogateescape")
        begin = end


def _key(name: str) -> bytes:
    raw = name.encode("utf-8", "surrogateescape")
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

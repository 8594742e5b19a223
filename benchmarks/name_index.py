"""Compare the index of stores (a SQLite file) with the memory-mapped hash table that it replaced.

    python benchmarks/name_index.py

Both index the same names. They are written to a temporary folder and measured in one process, in alternating rounds; the table
shows medians. Memory is the growth of RssAnon (memory outside the page cache) in forked processes that look names up.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import mmap
import multiprocessing
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from emollama.stores.index import Index, Location, build, file_digest

ROUNDS = 7
LOOKUPS = 20_000
READERS = 4
SHARDS = 10
ARRAY_BYTES = 4096


class IndexFormat(Protocol):
    """An index under test."""

    path: Path

    def build(self, names: Sequence[str]) -> None:
        """Write the index of these names."""

    def open(self) -> None:
        """Open the file and check its digest and its entries."""

    def find(self, name: str) -> Any:
        """Return the location of a name."""

    def names(self) -> Iterable[str]:
        """Return all names."""

    def shards(self, names: Sequence[str]) -> Any:
        """Return the shard of each name."""


def locations(count: int) -> list[Location]:
    """Return invented locations in ten shards."""
    each = count // SHARDS
    return [Location(number // each, number % each * ARRAY_BYTES, 0, number * 7919 % 2**32) for number in range(count)]


class HashTable:
    """Entries of 64 bytes, at the CRC-32 of the name modulo the number of buckets, followed by the names.

    This is ``index.bin`` of packed shards of version 1, for names of less than 44 bytes.
    """

    ENTRY = np.dtype([("key", "S44"), ("kind", "<u4"), ("shard", "<u4"), ("offset", "<u8"), ("check", "<u4")])
    UNPACK = struct.Struct("<44sIIQI").unpack_from

    def __init__(self, folder: Path) -> None:
        self.path = folder / "index.bin"

    def build(self, names: Sequence[str]) -> None:
        """Write the table, the end of each name, and the names."""
        raw = [name.encode() for name in names]
        entries = np.zeros(len(names), self.ENTRY)
        entries["key"] = [self.key(name) for name in raw]
        for field, values in zip(("shard", "offset", "kind", "check"), zip(*locations(len(names)), strict=True), strict=True):
            entries[field] = values
        self.buckets = 2 * len(names) | 1
        home = self.home(entries["key"])
        order, steps = np.argsort(home, kind="stable"), np.arange(len(names))
        bucket = np.maximum.accumulate(home[order] - steps) + steps
        table = np.zeros(max(self.buckets, int(bucket[-1]) + 1) + 1, self.ENTRY)
        table[bucket] = entries[order]
        self.count, self.table_bytes = len(names), table.nbytes
        ends = np.cumsum([len(name) for name in raw], dtype=np.uint64)
        self.path.write_bytes(b"".join([table.tobytes(), ends.tobytes(), *raw]))
        self.digest = file_digest(self.path)

    def open(self) -> None:
        """Map the file."""
        with open(self.path, "rb") as file:
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert hashlib.sha256(raw).hexdigest() == self.digest
        self.table = np.frombuffer(raw, np.uint8, self.table_bytes).view(self.ENTRY)
        self.bytes = self.table.view(np.uint8).data
        self.ends = np.frombuffer(raw, np.uint64, self.count, self.table_bytes)
        self.text = np.frombuffer(raw, np.uint8, offset=self.table_bytes + self.ends.nbytes)
        entries = self.table[self.table.view(np.uint8).reshape(-1, 64)[:, 43] != 0]
        assert len(entries) == self.count and entries["shard"].max() < SHARDS and entries["offset"].max() < 2**40

    def find(self, name: str) -> Any:
        """Probe the buckets from that of the name's key."""
        key = self.key(name.encode())
        offset = zlib.crc32(key) % self.buckets * 64
        while (entry := self.UNPACK(self.bytes, offset))[0] != key:
            offset += 64
        return entry

    def names(self) -> Iterable[str]:
        """Split the concatenated names."""
        text = self.text.tobytes()
        return (text[begin:end].decode() for begin, end in pairwise([0, *self.ends.tolist()]))

    def shards(self, names: Sequence[str]) -> Any:
        """Probe the buckets of all names together."""
        keys = np.array([self.key(name.encode()) for name in names], "S44")
        buckets, shards, remaining = self.home(keys), np.full(len(names), -1, np.int64), np.arange(len(names))
        while remaining.size:
            hit = self.table["key"][buckets] == keys
            shards[remaining[hit]] = self.table["shard"][buckets[hit]]
            remaining, keys, buckets = remaining[~hit], keys[~hit], buckets[~hit] + 1
        return shards

    def home(self, keys: np.ndarray) -> np.ndarray:
        """Return the first bucket of each key."""
        checksums = np.fromiter(map(zlib.crc32, keys.tolist()), np.uint64, len(keys))
        return (checksums % np.uint64(self.buckets)).astype(np.int64)

    @staticmethod
    def key(raw: bytes) -> bytes:
        """Return the name with its length in the last byte."""
        return raw.ljust(43, b"\0") + bytes([len(raw) + 1])


class Sqlite:
    """The index of :mod:`emollama.stores.index`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "index.sqlite3"

    def build(self, names: Sequence[str]) -> None:
        """Write the file."""
        self.path.write_bytes(build(zip(names, locations(len(names)), strict=True)))
        self.digest = file_digest(self.path)

    def open(self) -> None:
        """Open the file as a packed store does."""
        assert file_digest(self.path) == self.digest
        self.index = Index(self.path)
        self.index.require_within([ARRAY_BYTES], [2**40] * SHARDS)

    def find(self, name: str) -> Any:
        """Look a name up."""
        return self.index.find(name)

    def names(self) -> Iterable[str]:
        """Read the whole table."""
        return self.index.names()

    def shards(self, names: Sequence[str]) -> Any:
        """Read the whole table."""
        return self.index.shards(names)


def timed(work: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes, which depend less on the load of the machine."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def anonymous_kib() -> int:
    """Return RssAnon of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def memory(variant: IndexFormat, names: Sequence[str], readers: int) -> float:
    """Return the summed growth of RssAnon in MiB of forked processes that look names up at the same time."""
    # Memory that was freed would otherwise hide what the readers allocate.
    ctypes.CDLL(None).malloc_trim(0)
    context = multiprocessing.get_context("fork")
    together, results = context.Barrier(readers), context.SimpleQueue()

    def read() -> None:
        before = anonymous_kib()
        for name in names:
            variant.find(name)
        together.wait()
        results.put(anonymous_kib() - before)

    processes = [context.Process(target=read) for _ in range(readers)]  # type: ignore[attr-defined]
    for process in processes:
        process.start()
    total = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total) / 1024


def measure(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Return the medians of all measurements, by measurement and variant."""
    variants: dict[str, IndexFormat] = {"hash table": HashTable(folder), "SQLite": Sqlite(folder)}
    names = [f"sample_{number:08d}" for number in range(count)]
    rng = np.random.default_rng(0)
    some = [names[index] for index in rng.integers(0, count, LOOKUPS)]
    permuted = [names[index] for index in rng.permutation(count)]
    work: dict[str, Callable[[IndexFormat], float]] = {
        "build (s)": lambda variant: timed(lambda: variant.build(names)),
        "open and check (ms)": lambda variant: 1e3 * timed(variant.open),
        "look-up of a random name (us)": lambda variant: 1e6 / LOOKUPS * timed(lambda: [variant.find(name) for name in some]),
        "iteration over the names (s)": lambda variant: timed(lambda: sum(1 for _ in variant.names())),
        "shards of all names (s)": lambda variant: timed(lambda: variant.shards(permuted)),
        "memory of one reader (MiB)": lambda variant: memory(variant, some, 1),
        f"memory of {READERS} readers (MiB)": lambda variant: memory(variant, some, READERS),
        "size of the file (MiB)": lambda variant: variant.path.stat().st_size / 2**20,
    }
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(ROUNDS):
        one: dict[str, dict[str, float]] = {measurement: {} for measurement in work}
        for label, variant in variants.items():
            for measurement, value in work.items():
                one[measurement][label] = value(variant)
        rounds.append(one)
    return {measurement: {label: median(one[measurement][label] for one in rounds) for label in variants} for measurement in work}


def main() -> None:
    """Print a table for each number of names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of names")
    for count in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            table = measure(Path(folder), count)
        sys.stdout.write(f"{count:,} names".ljust(32) + "".join(f"{label:>12}" for label in next(iter(table.values()))) + "\n")
        for measurement, row in table.items():
            sys.stdout.write(measurement.ljust(32) + "".join(f"{value:12.3f}" for value in row.values()) + "\n")


if __name__ == "__main__":
    main()

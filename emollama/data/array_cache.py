"""A cache of arrays that passed the checks, with one row per array, so that all unchanged files are recognized together.

The cache file (:mod:`emollama.data.validation_cache`) has a line of JSON and then the columns: the stamps of the files, the kinds
and digests of the arrays, and the names of the clips.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emollama.data.problems import Problem
from emollama.data.validation_cache import Stamp, cache_path, code_stamps, read_verified, write_verified

DIGEST_BYTES = 16  # hexadecimal digits of the digest of an array


class FileCheck(NamedTuple):
    """Properties of an array that passed the checks, as texts.

    Attributes:
        dtype, shape: of the stored array.
        size: bytes of its values.
        digest: hash of its values; "alike" if all values are equal, "" if the values were not read.
    """

    dtype: str
    shape: str
    size: str
    digest: str


class FeatureCheck(NamedTuple):
    """Result of checking the arrays of several clips.

    Attributes:
        valid: clip name -> properties of its array, for arrays that passed.
        problems: what is wrong with the others.
    """

    valid: dict[str, FileCheck]
    problems: list[Problem]


class DigestCheck(NamedTuple):
    """Result of comparing arrays with their recorded digests.

    Attributes:
        changed: names of the clips whose arrays have other bytes than when they were written.
        without_digest: names of the clips for whose arrays no digest was recorded.
    """

    changed: list[str]
    without_digest: list[str]


@dataclass
class ArrayCache:
    """Arrays that passed one kind of check.

    Attributes:
        path: the cache file.
        names: (n) names of the clips.
        stamps: (n, s) int64 stamps of the files.
        kinds: dtype, shape and size of each kind of array.
        kind_ids: (n,) int32 index in ``kinds``.
        digests: (n,) bytes, the digest of each array.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    stamps: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    kinds: list[tuple[str, str, str]] = field(default_factory=list)
    kind_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, f"S{DIGEST_BYTES}"))

    def __post_init__(self) -> None:
        self._rows = {name: row for row, name in enumerate(self.names)}
        self._new: dict[str, tuple[Stamp, FileCheck]] = {}

    @classmethod
    def load(cls, *settings: str) -> ArrayCache:
        """Load the cache of one folder; ``settings`` is everything that the result depends on besides stamps and code."""
        path = cache_path("arrays", "bin", *settings, code_stamps("data", "stores"))
        content = read_verified(path)
        if not content:
            return cls(path)
        header, _, columns = content.partition(b"\n")
        count, width, kinds = json.loads(header)
        sizes = (8 * count * width, 4 * count, DIGEST_BYTES * count)
        ends = np.cumsum(sizes)
        stamps, kind_ids, digests = (columns[end - size : end] for size, end in zip(sizes, ends, strict=True))
        return cls(
            path,
            columns[ends[-1] :].decode("utf-8", "surrogatepass").split("\0"),
            np.frombuffer(stamps, "<i8").reshape(count, width),
            list(map(tuple, kinds)),
            np.frombuffer(kind_ids, "<i4"),
            np.frombuffer(digests, f"S{DIGEST_BYTES}"),
        )

    def find(self, names: Sequence[str], stamps: Sequence[Stamp]) -> list[FileCheck | None]:
        """Return the cached result of each clip whose file has the same stamp as then; None for others and empty stamps."""
        rows = np.array([self._rows.get(name, -1) for name in names])
        if not self.names or {len(stamp) for stamp in stamps} != {self.stamps.shape[1]}:
            return [self._find_one(row, stamp) for row, stamp in zip(rows, stamps, strict=True)]
        same = (rows >= 0) & (self.stamps[rows] == _columns(stamps)).all(axis=1)
        kinds, digests = [self.kinds[kind] for kind in self.kind_ids[rows].tolist()], self.digests[rows].tolist()
        return [
            FileCheck(dtype, shape, size, digest.decode()) if unchanged else None
            for unchanged, (dtype, shape, size), digest in zip(same.tolist(), kinds, digests, strict=True)
        ]

    def _find_one(self, row: int, stamp: Stamp) -> FileCheck | None:
        if row < 0 or not stamp or not np.array_equal(self.stamps[row], _columns([stamp])[0]):
            return None
        dtype, shape, size = self.kinds[self.kind_ids[row]]
        return FileCheck(dtype, shape, size, self.digests[row].decode())

    def add(self, name: str, stamp: Stamp, result: FileCheck) -> None:
        """Cache the result of a successful check, unless the stamp is empty."""
        if stamp:
            self._new[name] = stamp, result

    def save(self) -> None:
        """Write new results to the cache file, if the cache folder is writable."""
        if not self._new:
            return
        stamps = _columns([stamp for stamp, _ in self._new.values()])
        # Results with stamps of another length are of another kind of store, which was at this place before.
        same_width = stamps.shape[1] == self.stamps.shape[1]
        rest = np.array([row for row, name in enumerate(self.names) if same_width and name not in self._new], np.int64)
        kinds = list(dict.fromkeys([*self.kinds, *(result[:3] for _, result in self._new.values())]))
        ids = {kind: index for index, kind in enumerate(kinds)}
        new_ids = np.array([ids[result[:3]] for _, result in self._new.values()], np.int32)
        new_digests = np.array([result.digest.encode() for _, result in self._new.values()], self.digests.dtype)
        columns = [
            np.concatenate([self.stamps[rest], stamps]) if len(rest) else stamps,
            np.concatenate([self.kind_ids[rest], new_ids]),
            np.concatenate([self.digests[rest], new_digests]),
        ]
        names = "\0".join([*(self.names[row] for row in rest), *self._new])
        header = json.dumps([len(columns[1]), stamps.shape[1], kinds]).encode()
        content = b"".join(column.astype(column.dtype.newbyteorder("<")).tobytes() for column in columns)
        write_verified(self.path, header + b"\n" + content + names.encode("utf-8", "surrogatepass"))


def _columns(stamps: Sequence[Stamp]) -> np.ndarray:
    """Return stamps as an (n, s) int64 array. Inode numbers can have 64 bits without a sign."""
    try:
        return np.array(stamps, np.int64)
    except OverflowError:
        return np.array([[value & ((1 << 63) - 1) for value in stamp] for stamp in stamps], np.int64)

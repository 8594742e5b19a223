"""Texts of many clips in few objects: the bytes of all texts one after the other, and where each begins.

A Python string takes 50 to 60 bytes besides its characters, and data workers get a copy of each string that they use, because
Python counts references inside it. The arrays of this module have no such counts, and may be a mapped file
(:mod:`emollama.data.text_index`), so that all processes of a machine share them.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

CHUNK = 1 << 14  # texts that are decoded at a time when all are needed
_END = b"\n"  # after each text, so that an empty text differs from a missing one


@dataclass(frozen=True, eq=False)
class TextColumn:
    """One text, or none, for each row.

    Attributes:
        starts: (n + 1,) int64 positions of the texts in ``content``, each followed by one further byte.
        content: uint8 array of the bytes of all texts.
    """

    starts: np.ndarray
    content: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> TextColumn:
        """Store texts; None marks a row without one."""
        raw = [b"" if text is None else text.encode("utf-8", "surrogatepass") + _END for text in texts]
        starts = np.zeros(len(raw) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)), out=starts[1:])
        return cls(starts, np.frombuffer(b"".join(raw), np.uint8))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def get(self, row: int) -> str | None:
        """Return the text of a row."""
        start, end = int(self.starts[row]), int(self.starts[row + 1])
        return None if start == end else self.content[start : end - 1].tobytes().decode("utf-8", "surrogatepass")

    def missing(self) -> np.ndarray:
        """Return the (n,) bool array of the rows without a text."""
        missing: np.ndarray = self.starts[1:] == self.starts[:-1]
        return missing

    def all(self, rows: np.ndarray) -> Iterator[str | None]:
        """Yield the texts of many rows."""
        for first in range(0, len(rows), CHUNK):
            chunk = rows[first : first + CHUNK]
            for start, end in zip(self.starts[chunk].tolist(), self.starts[chunk + 1].tolist(), strict=True):
                yield None if start == end else self.content[start : end - 1].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True, eq=False)
class NameColumn:
    """The names of all rows, and the row of a name.

    Attributes:
        texts: the names.
        checksums: (n,) uint32, the CRC-32 of the names in ascending order.
        order: (n,) uint32, the row of each of them.
    """

    texts: TextColumn
    checksums: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str]) -> NameColumn:
        """Store names. Of equal ones, look-ups return the first row."""
        checksums = np.fromiter(map(_checksum, names), np.uint32, len(names))
        order = np.argsort(checksums, kind="stable").astype(np.uint32)
        return cls(TextColumn.of(names), checksums[order], order)

    def find(self, name: str) -> int:
        """Return the row of a name, or -1."""
        checksum = _checksum(name)
        position = int(np.searchsorted(self.checksums, np.uint32(checksum)))
        while position < len(self.checksums) and int(self.checksums[position]) == checksum:
            row = int(self.order[position])
            if self.texts.get(row) == name:
                return row
            position += 1
        return -1


class Names(Sequence[str]):
    """The names of some rows, in order.

    Attributes:
        column: all names.
        rows: (n,) the rows.
    """

    def __init__(self, column: NameColumn, rows: np.ndarray) -> None:
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return map(str, self.column.texts.all(self.rows))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return list(Names(self.column, self.rows[index]))
        return str(self.column.texts.get(int(self.rows[index])))

    def digest(self) -> str:
        """Return a hash of the names and their order, without making strings of them."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rows, "<u4").data)
        digest.update(np.ascontiguousarray(self.column.texts.content).data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class TextsByName(Mapping[str, str]):
    """Name -> text, for the rows that have one.

    Attributes:
        names: the names of all rows.
        column: the texts of all rows.
    """

    def __init__(self, names: NameColumn, column: TextColumn) -> None:
        self.names, self.column = names, column

    def __getitem__(self, name: str) -> str:
        row = self.names.find(name) if isinstance(name, str) else -1
        text = self.column.get(row) if row >= 0 else None
        if text is None:
            raise KeyError(name)
        return text

    def __iter__(self) -> Iterator[str]:
        return iter(Names(self.names, np.flatnonzero(~self._missing)))

    def __len__(self) -> int:
        return len(self.column) - int(self._missing.sum())

    def missing_in(self, names: Names) -> list[str]:
        """Return those of the names that have no text; the names are of the same rows."""
        return list(Names(names.column, names.rows[self._missing[names.rows]]))

    @cached_property
    def _missing(self) -> np.ndarray:
        return self.column.missing()


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogatepass"))


def missing_names(names: Iterable[str], present: Container[str]) -> list[str]:
    """Return the names that are not in ``present``, in order."""
    if isinstance(present, TextsByName) and isinstance(names, Names) and names.column is present.names:
        return present.missing_in(names)
    return [name for name in names if name not in present]

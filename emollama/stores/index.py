"""The index of a store: a SQLite file that maps clip names to the locations of their arrays.

An index is written once and never changed. It is therefore opened read-only and without locks, as many processes as needed can
read it at the same time, and it may be in a read-only folder or on a network file system. SQLite maps the file, so processes
share its pages.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from emollama.json_io import parse_json
from emollama.paths import cache_folder

_CACHE = "indexes-1"  # subfolder of the user's cache folder; with the version of the tables below
_MAX_MAPPED = 2**40  # bytes; larger than any index
_TABLES = """
CREATE TABLE description (json TEXT);
CREATE TABLE arrays
    (name BLOB PRIMARY KEY, shard INTEGER, offset INTEGER, kind INTEGER, checksum INTEGER) WITHOUT ROWID;
"""
_EXTENTS = """CREATE TABLE extents AS SELECT
    shard, kind, count(*) AS arrays, min(offset) AS first, max(offset) AS last FROM arrays GROUP BY shard, kind"""
_FIND = "SELECT shard, offset, kind, checksum FROM arrays WHERE name = ?"


class Location(NamedTuple):
    """Where an array is.

    Attributes:
        shard: position of its shard in the store.
        offset: position of its first byte in the shard.
        kind: position of its shape and dtype in the store's list of them.
        checksum: CRC-32 of bytes of the shard by which a changed shard is detected.
    """

    shard: int
    offset: int
    kind: int
    checksum: int


class RepeatedName(ValueError):
    """Raised if two arrays have the same name.

    Attributes:
        name: the name.
        shards: the shards of both arrays.
    """

    def __init__(self, name: str, shards: tuple[int, int]) -> None:
        super().__init__(f"two arrays have the name '{name}'")
        self.name, self.shards = name, shards


def build(arrays: Iterable[tuple[str, Location]], description: Any = None) -> bytes:
    """Return the content of an index file.

    Args:
        arrays: name and location of each array.
        description: any JSON value, which :attr:`Index.description` returns.

    Raises:
        RepeatedName: If two arrays have the same name.
    """
    current: tuple[str, Location] | None = None

    def rows() -> Iterator[tuple[bytes, int, int, int, int]]:
        nonlocal current
        for current in arrays:
            yield _key(current[0]), *current[1]

    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_TABLES)
        database.execute("INSERT INTO description VALUES (?)", (json.dumps(description),))
        try:
            database.executemany("INSERT INTO arrays VALUES (?, ?, ?, ?, ?)", rows())
        except sqlite3.IntegrityError:
            assert current is not None
            name, location = current
            (first,) = database.execute("SELECT shard FROM arrays WHERE name = ?", (_key(name),)).fetchone()
            raise RepeatedName(name, (first, location.shard)) from None
        database.execute(_EXTENTS)
        database.commit()
        return database.serialize()


def open_cached(key: str, build: Callable[[], bytes]) -> Index:
    """Open an index in the user's cache folder, and write it first if it is not there.

    The name of the file contains the digest of its content. A damaged file is therefore replaced, and it does not matter which
    of several processes writes it. The index is kept in memory if nothing can be written to the cache folder.

    Args:
        key: hexadecimal digest of everything from which the index is built.
        build: returns the content of the index.
    """
    folder = None
    # Without a home folder there is no cache folder.
    with suppress(RuntimeError):
        folder = cache_folder() / _CACHE
        for path in folder.glob(f"{key}-*.sqlite3"):
            with suppress(OSError):
                if path.stem.endswith(file_digest(path)):
                    return Index(path)
            logging.getLogger("emollama").warning("%s: this index is damaged and is built again", path)
    content = build()
    if folder is not None:
        with suppress(OSError):
            return Index(_write_cached(folder, key, content))
    return Index(content)


def file_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamps(paths: Iterable[str | Path]) -> tuple[int, ...]:
    """Return size, modification time, change time and inode of all files; nothing if one cannot be examined."""
    try:
        statuses = [os.stat(path) for path in paths]
    except OSError:
        return ()
    return tuple(
        number for status in statuses for number in (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    )


class Index:
    """An index, opened for look-ups by any number of threads and forked processes.

    Args:
        source: the file, or its content. The caller has checked its digest.

    Raises:
        ValueError: If the file is not an index.
    """

    _database: sqlite3.Connection | None = None

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        try:
            self._open_in_this_process()
            (text,) = self._execute("SELECT json FROM description").fetchone()
            self._extents = self._execute("SELECT shard, kind, arrays, first, last FROM extents").fetchall()
        except sqlite3.Error as error:
            raise ValueError(f"not an index: {error}") from None
        self.description: Any = parse_json(text)

    def __len__(self) -> int:
        return sum(arrays for _, _, arrays, _, _ in self._extents)

    def __del__(self) -> None:
        if self._database is not None:
            self._database.close()

    def find(self, name: str) -> Location | None:
        """Return the location of an array, or None.

        Raises:
            OSError: If the file cannot be read.
        """
        try:
            if self._process != os.getpid():
                self._open_in_this_process()
            with self._lock:
                row = self._execute(_FIND, (_key(name),)).fetchone()
        except sqlite3.Error as error:
            raise OSError(f"cannot read the index: {error}") from None
        return None if row is None else Location._make(row)

    def names(self) -> Iterator[str]:
        """Yield all names, shard by shard, in the order in which the arrays are stored."""
        with closing(_connect(self._source)) as database:
            for (key,) in database.execute("SELECT name FROM arrays ORDER BY shard, offset"):
                yield key.decode("utf-8", "surrogateescape")

    def shards(self, names: Sequence[str]) -> np.ndarray:
        """Return the (n,) int64 shard of each name, -1 for unknown names."""
        # Reading the whole table takes a third of the time of a million look-ups.
        with closing(_connect(self._source)) as database:
            shards = dict(database.execute("SELECT name, shard FROM arrays"))
        return np.fromiter((shards.get(_key(name), -1) for name in names), np.int64, len(names))

    def require_within(self, array_bytes: Sequence[int], shard_bytes: Sequence[int]) -> None:
        """Check that all arrays are inside their shards.

        Args:
            array_bytes: size of an array of each kind.
            shard_bytes: size of each shard.

        Raises:
            ValueError: If a kind or shard is unknown, or an array is not inside its shard.
        """
        for shard, kind, _, first, last in self._extents:
            if not (0 <= shard < len(shard_bytes) and 0 <= kind < len(array_bytes)):
                raise ValueError("an array has an unknown kind or shard")
            if first < 0 or last + array_bytes[kind] > shard_bytes[shard]:
                raise ValueError("an array is beyond the end of its shard")

    def _open_in_this_process(self) -> None:
        # A connection must not be used in a forked process.
        self._database, self._lock, self._process = _connect(self._source), threading.Lock(), os.getpid()
        self._execute = self._database.execute


def _connect(source: Path | bytes) -> sqlite3.Connection:
    if isinstance(source, bytes):
        database = sqlite3.connect(":memory:", check_same_thread=False)
        database.deserialize(source)
        return database
    database = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    database.execute(f"PRAGMA mmap_size = {_MAX_MAPPED}")
    return database


def _write_cached(folder: Path, key: str, content: bytes) -> Path:
    path = folder / f"{key}-{hashlib.sha256(content).hexdigest()}.sqlite3"
    folder.mkdir(parents=True, exist_ok=True)
    # A name that no other process uses, on any machine that shares the folder.
    temporary = folder / uuid4().hex
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")

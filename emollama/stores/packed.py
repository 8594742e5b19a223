"""Packed shards: the arrays of one encoder one after another in a few large files, read by memory map.

A folder holds ``store.json`` (what the arrays are; size and digests of every file, and its own), ``index.bin`` (a hash table
of :mod:`emollama.stores.name_index`, then where each name ends, then the names) and ``shard-00000.bin`` and so on: arrays in C
order, each at a multiple of 64 bytes, so that arrays which are all alike lie at a fixed stride. With int8 values an array is
preceded by the float32 scales of its rows. ``emollama pack`` writes such folders.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emollama.errors import UserError
from emollama.paths import PATHS, read_text, sha256
from emollama.stores.name_index import NameIndex, extract_entries, map_columns, require_within, split_names
from emollama.stores.quantization import dequantize

ABOUT, INDEX = "store.json", "index.bin"
FORMAT, VERSION = "emollama packed arrays", 1
TYPES = ("<f2", "<f4", "<f8", "|i1")  # of stored values
ALIGNMENT = 64  # bytes
HEAD_BYTES = 4096  # of a shard; their checksum tells it from other shards
MAX_OPEN_MAPS = 128  # shards mapped at once by a store in a process; each takes a file descriptor


class ArrayKind(NamedTuple):
    """What arrays of one kind are.

    Attributes:
        shape: of an array, as it is read.
        dtype: of its values, as they are stored.
        scales: rows of float32 scales before int8 values, else 0.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    scales: int

    @property
    def nbytes(self) -> int:
        """Bytes of one array in its shard."""
        return 4 * self.scales + math.prod(self.shape) * self.dtype.itemsize


def shard_name(number: int) -> str:
    """``shard-00003.bin``."""
    return f"shard-{number:05d}.bin"


def digest(about: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of a description, of everything in it but that."""
    rest = {key: value for key, value in about.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_packed(folder: str) -> bool:
    """Whether packed shards lie in a folder, whole or not."""
    try:
        return any(PATHS.isfile(os.path.join(folder, name)) for name in (ABOUT, INDEX, shard_name(0)))
    except NotImplementedError:  # a remote place that cannot be asked
        return False


class PackedStore:
    """The arrays of a folder of packed shards, by clip name. Fulfils ``emollama.stores.store.ArrayStore``.

    Opening maps the index; a shard is mapped at its first use in a process. A pickled store opens again where it is unpickled.
    A shard that is cut short while it is mapped ends the process (SIGBUS), as with any memory map.
    """

    def __init__(self, folder: Path, about: dict[str, Any], index: mmap.mmap) -> None:
        self.folder = folder
        self._about = about
        self._kinds = [_kind(**kind) for kind in about["kinds"]]
        table, self._ends, self._text = map_columns(index, 0, about["table_bytes"], about["clips"])
        sizes = [shard["bytes"] for shard in about["shards"]]
        require_within(extract_entries(table, len(self)), [kind.nbytes for kind in self._kinds], sizes)
        self._index = NameIndex(table, len(self))
        self._shard = functools.lru_cache(MAX_OPEN_MAPS)(self._mapped)

    @classmethod
    def open(cls, folder: str | Path) -> PackedStore:
        """Open a folder and compare its files with their recorded sizes and first bytes.

        Raises:
            UserError: a file is missing, cut short, of another store, or an index was changed.
        """
        root = Path(PATHS.get_local_path(str(folder)))
        about = _read_about(root)
        try:
            for number, shard in enumerate(about["shards"]):
                _check_shard(root / shard_name(number), shard)
            return cls(root, about, _mapped_index(root, about))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(root / ABOUT, f"an entry is missing, unknown or wrong: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedStore.open, (str(self.folder),)

    def __len__(self) -> int:
        return int(self._about["clips"])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name) is not None

    def names(self) -> Iterable[str]:
        """Every clip, in the order in which they were packed."""
        return split_names(self._ends, self._text)

    def load(self, name: str) -> np.ndarray:
        """The clip's array, copied: as it was packed; float32 where values are int8.

        Raises:
            OSError, ValueError: no such clip, or its shard cannot be read.
        """
        _, number, shard, offset, _ = self._find(name)
        shape, dtype, scales = self._kinds[number]
        data = self._shard(shard)
        if scales:
            factors = np.ndarray((scales, 1), np.float32, data, offset)
            return dequantize(factors, np.ndarray(shape, dtype, data, offset + factors.nbytes))
        array: np.ndarray = np.ndarray(shape, dtype, data, offset).copy()
        return array

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of what :meth:`load` gives.

        Raises:
            OSError: no such clip.
        """
        shape, dtype, scales = self._kinds[self._find(name)[1]]
        return shape, np.dtype(np.float32) if scales else dtype

    def location(self, name: str) -> str:
        """Shard and clip."""
        entry = self._index.find(name)
        return f"{self.folder / shard_name(entry[2]) if entry else self.folder}, {name}"

    def stamp(self, name: str) -> tuple[int, ...]:
        """The shard's size, times of modification and of change, and inode; the array's place in it.

        Raises:
            OSError: no such clip or shard.
        """
        _, _, shard, offset, _ = self._find(name)
        status = os.stat(self.folder / shard_name(shard))
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, offset

    def groups(self, names: Sequence[str]) -> np.ndarray | None:
        """None: any order is as good."""
        return None

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self._about["shards"])

    def find_damaged(self, advance: Callable[[], object]) -> dict[str, list[str]]:
        """The shards whose bytes are not those that were written, with the clips in them whose arrays are not.

        Args:
            advance: called after each shard; everything in it was read.
        """
        found = {}
        for number, shard in enumerate(self._about["shards"]):
            if sha256(self.folder / shard_name(number)) != shard["sha256"]:
                found[shard_name(number)] = [name for name in self.names() if self._is_damaged(name, number)]
            advance()
        return found

    def _is_damaged(self, name: str, shard: int) -> bool:
        _, number, place, offset, check = self._find(name)
        return place == shard and zlib.crc32(self._shard(shard)[offset : offset + self._kinds[number].nbytes]) != check

    def _find(self, name: str) -> tuple[bytes, int, int, int, int]:
        entry = self._index.find(name)
        if entry is None:
            raise FileNotFoundError(f"no clip '{name}' in {self.folder}")
        return entry

    def _mapped(self, number: int) -> mmap.mmap:
        with open(self.folder / shard_name(number), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(data) != self._about["shards"][number]["bytes"]:
            raise ValueError(f"{shard_name(number)} has changed its size since the store was opened")
        return data


def _read_about(root: Path) -> dict[str, Any]:
    path = root / ABOUT
    if not path.is_file():
        raise _damaged(path, "missing")
    try:
        about = json.loads(read_text(str(path)))
    except ValueError as error:
        raise _damaged(path, f"not JSON: {error}") from None
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise _damaged(path, f"not '{FORMAT}', version {VERSION}")
    if about.get("digest") != digest(about):
        raise _damaged(path, "its digest is not the one that was written")
    return about


def _kind(shape: list[int], dtype: str, scales: int) -> ArrayKind:
    if dtype not in TYPES:  # of others, objects say, the bytes could be anything
        raise TypeError(f"dtype {dtype}")
    if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"shape {shape}")
    if scales != (math.prod(shape[:-1]) if dtype == "|i1" else 0):
        raise ValueError(f"{scales} scales of {dtype} values, shape {shape}")
    return ArrayKind(tuple(shape), np.dtype(dtype), scales)


def _check_shard(path: Path, recorded: dict[str, Any]) -> None:
    with _file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != recorded["bytes"]:
            raise _damaged(path, f"{size} bytes, {ABOUT} says {recorded['bytes']}")
        if zlib.crc32(file.read(HEAD_BYTES)) != recorded["head"]:
            raise _damaged(path, f"not the shard that {ABOUT} describes")


def _mapped_index(root: Path, about: dict[str, Any]) -> mmap.mmap:
    with _file(root / INDEX) as file:
        size = os.fstat(file.fileno()).st_size
        if size != about["index"]["bytes"]:
            raise _damaged(root / INDEX, f"{size} bytes, {ABOUT} says {about['index']['bytes']}")
        index = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hashlib.sha256(index).hexdigest() != about["index"]["sha256"]:
        raise _damaged(root / INDEX, "its digest is not the one that was written")
    return index


def _file(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from None


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path}: {problem}. These packed shards are not whole: copy them again, or pack them again (emollama pack)."
    )

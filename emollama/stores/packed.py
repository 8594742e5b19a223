"""Packed shards: the arrays of one encoder in a few large files, which are read by memory map.

A folder contains ``store.json`` (shapes and dtypes of the arrays; sizes and digests of all files), ``index.sqlite3``
(:mod:`emollama.stores.index`) and shards ``shard-00000.bin`` etc. A shard contains arrays in C order, each at a multiple of 64
bytes, so that equally large arrays have a fixed stride. An array of int8 values is preceded by the float32 scales of its feature
vectors. ``emollama pack`` writes such folders. Folders of version 1 have another index, which is converted when they are opened.
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

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.json_io import parse_json
from emollama.paths import PATHS, read_text, sha256
from emollama.stores import packed_v1
from emollama.stores.index import Index, Location, build, file_digest, file_stamps, open_cached
from emollama.stores.quantization import dequantize

METADATA, INDEX = "store.json", "index.sqlite3"
FORMAT, VERSION = "emollama packed arrays", 2
TYPES = ("<f2", "<f4", "<f8", "|i1")  # dtypes of stored values
ALIGNMENT = 64  # bytes
HEAD_BYTES = 4096  # the checksum of these first bytes distinguishes a shard from others
MAX_OPEN_MAPS = 128  # shards that a store maps at once in a process; each needs a file descriptor


class ArrayKind(NamedTuple):
    """Shape and storage format of arrays of one kind.

    Attributes:
        shape: shape of an array.
        dtype: dtype of the stored values.
        scales: number of float32 scales before int8 values, else 0.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    scales: int

    @property
    def nbytes(self) -> int:
        """Size of one array in its shard, in bytes."""
        return 4 * self.scales + math.prod(self.shape) * self.dtype.itemsize


def shard_name(shard_index: int) -> str:
    """Return the file name of a shard, such as ``shard-00003.bin``."""
    return f"shard-{shard_index:05d}.bin"


def digest(metadata: dict[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of ``store.json`` without its own digest."""
    rest = {key: value for key, value in metadata.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_packed(folder: str) -> bool:
    """Return whether a folder contains packed shards, even incomplete ones."""
    try:
        return any(PATHS.isfile(os.path.join(folder, name)) for name in (METADATA, INDEX, packed_v1.INDEX, shard_name(0)))
    except NotImplementedError:
        # iopath cannot check whether a file exists at this remote location.
        return False


class PackedStore:
    """The arrays in a folder of packed shards, by clip name. Implements ``emollama.stores.store.ArrayStore``.

    The index is mapped when the store opens, a shard when it is first used in a process. Unpickling a store opens it again. If a
    file is truncated while it is mapped, the process dies (SIGBUS), as with any memory map.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any], index: Index) -> None:
        self.folder = folder
        self._metadata = metadata
        self._kinds = [_kind(**kind) for kind in metadata["kinds"]]
        index.require_within([kind.nbytes for kind in self._kinds], [shard["bytes"] for shard in metadata["shards"]])
        if len(index) != metadata["clips"]:
            raise ValueError(f"the index has {len(index)} clips, not {metadata['clips']}")
        self._index = index
        self._shard = functools.lru_cache(MAX_OPEN_MAPS)(self._map_shard)

    @classmethod
    def open(cls, folder: str | Path) -> PackedStore:
        """Open a folder, and check the sizes and first bytes of its files and the digest of its index.

        Raises:
            UserError: If a file is missing, truncated or from another store, or the index was changed.
        """
        root = Path(PATHS.get_local_path(str(folder)))
        metadata = _read_metadata(root)
        try:
            for shard_index, shard in enumerate(metadata["shards"]):
                _check_shard(root / shard_name(shard_index), shard)
            return cls(root, metadata, _open_index(root, metadata))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(root / METADATA, f"an entry is missing, unknown or wrong: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedStore.open, (str(self.folder),)

    def __len__(self) -> int:
        return int(self._metadata["clips"])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name) is not None

    def names(self) -> Iterable[str]:
        """Return the names of all clips in the order in which they were packed."""
        return self._index.names()

    def load(self, name: str) -> np.ndarray:
        """Return a copy of a clip's array, with the stored dtype, or float32 if the values are int8.

        Raises:
            OSError, ValueError: If the clip does not exist, or its shard cannot be read.
        """
        views = self._views(name)
        return dequantize(*views) if len(views) == 2 else views[0].copy()

    def load_quantized(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the scales (n, 1) and int8 values of a clip's array, which are views of the file; None for other values.

        Raises:
            OSError, ValueError: As for :meth:`load`.
        """
        views = self._views(name)
        return views if len(views) == 2 else None

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype of the array that :meth:`load` returns.

        Raises:
            OSError: If the clip does not exist.
        """
        shape, dtype, scales = self._kinds[self._find(name).kind]
        return shape, np.dtype(np.float32) if scales else dtype

    def location(self, name: str) -> str:
        """Return shard and clip name, for messages."""
        location = self._index.find(name)
        return f"{self.folder / shard_name(location.shard) if location else self.folder}, {name}"

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return size, modification time, change time and inode of the shard, and the array's offset in it.

        Raises:
            OSError: If the clip or the shard does not exist.
        """
        shard_index, offset, _, _ = self._find(name)
        status = os.stat(self.folder / shard_name(shard_index))
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, offset

    def files_stamp(self) -> tuple[int, ...]:
        """Return the stamps of all files, of which ``store.json`` has the digest of the index."""
        return file_stamps([self.folder / METADATA, *(self.folder / shard_name(index) for index in range(self.shards))])

    def is_intact(self, name: str) -> bool:
        """Return whether the bytes of a clip's array have the checksum in the index.

        Raises:
            OSError, ValueError: As for :meth:`load`.
        """
        shard_index, offset, kind_index, checksum = self._find(name)
        return zlib.crc32(self._shard(shard_index)[offset : offset + self._kinds[kind_index].nbytes]) == checksum

    def shard_ids(self, names: Sequence[str]) -> np.ndarray | None:
        """Return None, because packed shards can be read in any order."""
        return None

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._metadata["shards"])

    def find_damaged(self, advance: Callable[[], object]) -> dict[str, list[str]]:
        """Read all shards, and return those whose digest differs from the recorded one, with the clips that changed.

        Args:
            advance: called after each shard.
        """
        damaged = {}
        for shard_index, shard in enumerate(self._metadata["shards"]):
            if sha256(self.folder / shard_name(shard_index)) != shard["sha256"]:
                damaged[shard_name(shard_index)] = [
                    name for name in self.names() if self._find(name).shard == shard_index and not self.is_intact(name)
                ]
            advance()
        return damaged

    def _find(self, name: str) -> Location:
        location = self._index.find(name)
        if location is None:
            raise FileNotFoundError(f"no clip '{name}' in {self.folder}")
        return location

    def _views(self, name: str) -> tuple[np.ndarray] | tuple[np.ndarray, np.ndarray]:
        """Return the values of a clip as they are in the file, after the scales if they are int8."""
        shard_index, offset, kind_index, _ = self._find(name)
        shape, dtype, scales = self._kinds[kind_index]
        data = self._shard(shard_index)
        if not scales:
            return (np.ndarray(shape, dtype, data, offset),)
        factors: np.ndarray = np.ndarray((scales, 1), np.float32, data, offset)
        return factors, np.ndarray(shape, dtype, data, offset + factors.nbytes)

    def _map_shard(self, shard_index: int) -> mmap.mmap:
        with open(self.folder / shard_name(shard_index), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(data) != self._metadata["shards"][shard_index]["bytes"]:
            raise ValueError(f"the size of {shard_name(shard_index)} has changed since the store was opened")
        return data


def _read_metadata(root: Path) -> dict[str, Any]:
    path = root / METADATA
    if not path.is_file():
        raise _damaged(path, "missing")
    try:
        metadata = parse_json(read_text(str(path)))
    except ValueError as error:
        raise _damaged(path, f"not JSON: {error}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or metadata.get("version") not in (1, VERSION):
        raise _damaged(path, f"not '{FORMAT}', version 1 to {VERSION}")
    if metadata.get("digest") != digest(metadata):
        raise _damaged(path, "its digest differs from the recorded one")
    return metadata


def _kind(shape: list[int], dtype: str, scales: int) -> ArrayKind:
    # With a different dtype, such as object, numpy would interpret the bytes of a file as pointers.
    if dtype not in TYPES:
        raise TypeError(f"dtype {dtype}")
    if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"shape {shape}")
    if scales != (math.prod(shape[:-1]) if dtype == "|i1" else 0):
        raise ValueError(f"{scales} scales for {dtype} values of shape {shape}")
    return ArrayKind(tuple(shape), np.dtype(dtype), scales)


def _check_shard(path: Path, recorded: dict[str, Any]) -> None:
    with _open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != recorded["bytes"]:
            raise _damaged(path, f"has {size} bytes, expected {recorded['bytes']} ({METADATA})")
        if zlib.crc32(file.read(HEAD_BYTES)) != recorded["head"]:
            raise _damaged(path, f"not the shard that {METADATA} describes")


def _open_index(root: Path, metadata: dict[str, Any]) -> Index:
    path = root / (packed_v1.INDEX if metadata["version"] == 1 else INDEX)
    with _open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != metadata["index"]["bytes"]:
        raise _damaged(path, f"has {size} bytes, expected {metadata['index']['bytes']} ({METADATA})")
    if (digest := file_digest(path)) != metadata["index"]["sha256"]:
        raise _damaged(path, "its digest differs from the recorded one")
    if metadata["version"] == 1:
        return open_cached(digest, lambda: build(packed_v1.read(path, metadata["table_bytes"], metadata["clips"])))
    return Index(path)


def _open_file(path: Path) -> Any:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise _damaged(path, "missing") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. {remedy(error)}") from None


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path}: {problem}. The packed shards are incomplete or damaged. Copy them again, or run emollama pack again."
    )

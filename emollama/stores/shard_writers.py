"""Writers of packed shards (:mod:`emollama.stores.packed`) and of webdataset's tar shards with their indexes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from emollama.paths import atomic_write
from emollama.stores import packed, tar_index
from emollama.stores.index import Location, build
from emollama.stores.packed import ALIGNMENT, HEAD_BYTES, ArrayKind, shard_name


class WrittenShards(NamedTuple):
    """The shards that a writer has written.

    Attributes:
        shards: number of shards.
        bytes: total size of the shards.
        path_suffix: text that must be appended to the folder's path: ``::`` if the name of every clip in tars has a dot.
    """

    shards: int
    bytes: int
    path_suffix: str = ""


class Writer(Protocol):
    """Interface of a writer that adds arrays to shards in a folder."""

    def add(self, name: str, parts: tuple[np.ndarray, ...]) -> None:
        """Write an array that :func:`emollama.stores.quantization.encode` returned."""
        ...

    def finish(self) -> WrittenShards:
        """Finish the last shard, and write the index and the description of all shards."""
        ...

    def close(self) -> None:
        """Finish the current shard and close its file."""
        ...


class PackedWriter:
    """Writes packed shards.

    Args:
        folder: an existing, empty folder.
        shard_bytes: maximum size of a shard, unless it has a single, larger array.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._arrays: list[tuple[str, Location]] = []
        self._kinds: dict[ArrayKind, int] = {}
        self._shards: list[dict[str, Any]] = []
        self._open: _Shard | None = None

    def add(self, name: str, parts: tuple[np.ndarray, ...]) -> None:
        """Write an array: its values, or the scales of its feature vectors and int8 values."""
        kind = ArrayKind(parts[-1].shape, parts[-1].dtype, len(parts[0]) if len(parts) == 2 else 0)
        if self._open is not None and self._open.size + kind.nbytes > self.shard_bytes:
            self.close()
        if self._open is None:
            self._open = _Shard(self.folder / shard_name(len(self._shards)))
        offset, check = self._open.append(parts)
        kind_index = self._kinds.setdefault(kind, len(self._kinds))
        self._arrays.append((name, Location(len(self._shards), offset, kind_index, check)))

    def finish(self) -> WrittenShards:
        """Finish the last shard; write ``index.sqlite3`` and ``store.json``."""
        self.close()
        index = _Shard(self.folder / packed.INDEX)
        index.append((np.frombuffer(build(self._arrays), np.uint8),))
        metadata: dict[str, Any] = {
            "format": packed.FORMAT,
            "version": packed.VERSION,
            "clips": len(self._arrays),
            "kinds": [{"shape": kind.shape, "dtype": kind.dtype.str, "scales": kind.scales} for kind in self._kinds],
            "index": index.finish(),
            "shards": self._shards,
        }
        metadata["digest"] = packed.digest(metadata)
        with atomic_write(self.folder / packed.METADATA) as file:
            json.dump(metadata, file, indent=1)
        return WrittenShards(len(self._shards), sum(shard["bytes"] for shard in self._shards))

    def close(self) -> None:
        """Finish the current shard."""
        if self._open is not None:
            self._shards.append(self._open.finish())
            self._open = None


class _Shard:
    """A file that is written sequentially, with its digests."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._head = b""

    def append(self, parts: tuple[np.ndarray, ...]) -> tuple[int, int]:
        """Write arrays at the next aligned offset. Return the offset and the checksum of the bytes."""
        self._write(bytes(-self.size % ALIGNMENT))
        offset, check = self.size, 0
        for part in parts:
            raw = part.reshape(-1).view(np.uint8).data
            check = zlib.crc32(raw, check)
            self._write(raw)
        return offset, check

    def finish(self) -> dict[str, Any]:
        """Write the file to disk and close it. Return its size and digests."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self.size, "head": zlib.crc32(self._head), "sha256": self._sha256.hexdigest()}

    def _write(self, raw: bytes | memoryview) -> None:
        self._file.write(raw)
        self._sha256.update(raw)
        self._head += raw[: HEAD_BYTES - len(self._head)]
        self.size += len(raw)


class TarWriter:
    """Writes webdataset's shards ``shard-00000.tar`` etc. with members ``<name>.npy``, and an index for each shard.

    Args:
        folder: an existing, empty folder.
        shard_bytes: a shard is finished when its arrays have reached this size.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        from webdataset import ShardWriter

        self._paths: list[Path] = []
        self._checksums: dict[str, int] = {}
        self._file: IO[bytes] | None = None
        self._shards = ShardWriter(
            # webdataset treats the path as a format string.
            str(folder).replace("%", "%%") + "/shard-%05d.tar",
            maxcount=2**62,
            maxsize=shard_bytes,
            opener=self._open_file,
            post=self._close_file,
            verbose=0,
            encoder=False,
            mtime=0,
            format="PAX_FORMAT",
        )

    def add(self, name: str, parts: tuple[np.ndarray, ...]) -> None:
        """Write an array as a .npy member."""
        (array,) = parts
        member = io.BytesIO()
        np.lib.format.write_array(member, array, allow_pickle=False)
        self._checksums[name] = zlib.crc32(array.reshape(-1).view(np.uint8).data)
        self._shards.write({"__key__": name, "npy": member.getvalue()})

    def finish(self) -> WrittenShards:
        """Finish the last shard, and write the indexes."""
        self.close()
        indexes = [tar_index.scan(str(shard), shard.name, checksums=self._checksums) for shard in self._paths]
        paths = [f"{shard}{tar_index.SUFFIX}" for shard in self._paths]
        for index, path in zip(indexes, paths, strict=True):
            tar_index.write(index, path)
        dotted = not any("npy" in index.endings for index in indexes)
        return WrittenShards(len(indexes), sum(index.size for index in indexes), "::" if dotted else "")

    def close(self) -> None:
        """Finish the current shard."""
        self._shards.finish()

    def _open_file(self, path: str) -> IO[bytes]:
        self._paths.append(Path(path))
        self._file = open(path, "wb")  # noqa: SIM115
        return self._file

    def _close_file(self, path: str) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

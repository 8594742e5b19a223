"""The index file of one tar shard, which lists its arrays: name, offset and layout.

:mod:`emollama.stores.tar_set` makes one index of the files of several shards.

``train-000.tar.idx.npz`` is next to ``train-000.tar``, or in another folder and then contains the path of its tar. Only the .npy
members of a shard are read. The index counts all other members by extension. Arrays of objects, links, and members whose path
leads out of its folder are rejected when the index is written. Reading with an index creates only arrays of plain numbers.
"""

from __future__ import annotations

import json
import math
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np

from emollama.errors import DownloadError, FileAbsent, UserError
from emollama.json_io import parse_json
from emollama.listing import abbreviated
from emollama.paths import PATHS, atomic_write
from emollama.stores.npy import npy_header
from emollama.stores.tar_members import open_complete_tar, unsafe_member

SUFFIX = ".idx.npz"
# Version 1 has one more field per array, which is not read.
VERSION = 2
PLAIN = "fiub"  # kinds of dtypes that are plain numbers
ENTRY = np.dtype([("kind", "<u4"), ("offset", "<u8"), ("check", "<u4")])
# Name of an array that earlier versions neither write nor read.
CHECKSUMS = "values"
_CHUNK = 2**20  # bytes that are read at once
_DIRECTORY = 1024  # bytes at the end of an index file that contain the directory of its zip format


class Layout(NamedTuple):
    """Shape and storage format of an array in its shard.

    Attributes:
        shape: shape of the array.
        dtype: dtype of its values.
        fortran: whether the values are in Fortran order.
        head: size in bytes of the tar and npy headers before the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    head: int

    @property
    def nbytes(self) -> int:
        """Size of the array's values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TarIndex:
    """The index of a shard.

    Attributes:
        tar: path of the shard; None if the shard is next to the index.
        size: size of the shard in bytes.
        layouts: the different layouts of its arrays.
        endings: number of arrays by extension, which for webdataset starts at the first dot: ``{"npy": 8}`` or
            ``{"face.npy": 8, "video.npy": 8}``.
        skipped: number of members that are not read, by the text after their last dot: ``{"json": 8, "cls": 8}``.
        names: the names of the arrays: those of the members without ``.npy``.
        entries: (n,) array with the fields ``kind`` (position in ``layouts``), ``offset`` (of the values in the shard) and
            ``check`` (CRC-32 of the headers).
        checksums: (n,) uint32 CRC-32 of the arrays' values; None in an index of an earlier version.
    """

    tar: str | None
    size: int
    layouts: tuple[Layout, ...]
    endings: dict[str, int]
    skipped: dict[str, int]
    names: list[str]
    entries: np.ndarray
    checksums: np.ndarray | None = None


def scan(local: str, shown: str, tar: str | None = None, checksums: Mapping[str, int] = MappingProxyType({})) -> TarIndex:
    """Create the index of a shard from its members.

    Args:
        local: path of the shard on this machine.
        shown: name of the shard in messages.
        tar: path of the shard to store in the index; None if the index will be next to the shard.
        checksums: name -> CRC-32 of the values, for arrays whose values need not be read.

    Raises:
        UserError: If the file is not a tar, is truncated or contains no array, or a member is unsafe or a damaged array. The
            message names the shard and the member.
    """
    with open_complete_tar(local, shown) as (tar_members, file):
        members, skipped = _read_members(tar_members, file, shown, checksums)
        size = file.seek(0, 2)
    if not members:
        others = f"; its members end with {_by_extension(skipped)}" if skipped else ""
        raise UserError(f"{shown}: contains no .npy file{others}. Correct the path, or write the shard again.")
    layouts = {layout: index for index, layout in enumerate(dict.fromkeys(member.layout for member in members.values()))}
    rows = [(layouts[member.layout], member.offset, member.check) for member in members.values()]
    values = np.array([member.checksum for member in members.values()], np.uint32)
    endings = Counter(posixpath.basename(f"{name}.npy").partition(".")[2] for name in members)
    return TarIndex(tar, size, tuple(layouts), dict(endings), dict(skipped), list(members), np.array(rows, ENTRY), values)


def skipped_note(shards: Iterable[Mapping[str, int]]) -> str:
    """Return a sentence about the members of several shards that are not read; "" if there are none.

    Args:
        shards: for each shard, the number of its skipped members by extension.
    """
    counts = sum(map(Counter, shards), Counter[str]())
    if not counts:
        return ""
    total, some = counts.total(), _by_extension(counts)
    reason = "their names do not end with .npy" + (", or start with ._ (files of macOS)" if "npy" in counts else "")
    return f"{total:,} members of the tar shards are not read, because {reason}: {some}"


def _by_extension(counts: Mapping[str, int]) -> str:
    names = {extension: f".{extension}" if extension else "no extension" for extension in sorted(counts)}
    return abbreviated(f"{name} ({counts[extension]:,})" for extension, name in names.items())


def write(index: TarIndex, path: str | Path) -> None:
    """Write an index file."""
    layouts = layouts_to_json(index.layouts)
    metadata = {"version": VERSION, "tar": index.tar, "bytes": index.size, "layouts": layouts, "endings": index.endings}
    metadata["skipped"] = index.skipped
    raw = [name.encode("utf-8", "surrogateescape") for name in index.names]
    about, names = (np.frombuffer(text, np.uint8) for text in (json.dumps(metadata).encode(), b"".join(raw)))
    ends = np.cumsum([len(name) for name in raw], dtype=np.uint64)
    arrays = {"about": about, "entries": index.entries, "ends": ends, "names": names}
    if index.checksums is not None:
        arrays[CHECKSUMS] = index.checksums
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(path: str) -> TarIndex:
    """Read an index file.

    Raises:
        UserError: If the file does not exist, is damaged or has another version.
    """
    try:
        with np.load(PATHS.get_local_path(path), allow_pickle=False) as arrays:
            metadata: dict[str, Any] = parse_json(arrays["about"].tobytes())
            if metadata["version"] not in (1, VERSION):
                raise ValueError(f"version {metadata['version']}, expected 1 to {VERSION}")
            entries, ends, names = arrays["entries"], arrays["ends"].tolist(), arrays["names"].tobytes()
            checksums = arrays.get(CHECKSUMS)
        layouts = layouts_from_json(metadata["layouts"])
        if not ends or len(ends) != len(entries) or ends[-1] != len(names):
            raise ValueError("no arrays, or another number of names")
        if checksums is not None and (checksums.dtype != np.uint32 or checksums.shape != entries.shape):
            raise ValueError("another number of checksums than arrays")
        _require_within(entries, layouts, metadata["bytes"])
        raw = (names[begin:end] for begin, end in pairwise([0, *ends]))
        decoded = [name.decode("utf-8", "surrogateescape") for name in raw]
        # Indexes of earlier versions of this package have no "skipped": shards with other members had no index.
        skipped = metadata.get("skipped", {})
        return TarIndex(metadata["tar"], metadata["bytes"], layouts, metadata["endings"], skipped, decoded, entries, checksums)
    except DownloadError:
        raise
    except Exception as error:  # numpy and zipfile raise errors of many classes for a damaged file
        raise _unreadable(path, error) from None


def fingerprint(path: str) -> list[int]:
    """Return the size of an index file and the checksum of its end, where the zip format stores the checksums of its content.

    Raises:
        UserError: If the file does not exist.
        DownloadError: If the server of a remote file fails.
    """
    try:
        with open(PATHS.get_local_path(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _DIRECTORY))
            return [size, zlib.crc32(file.read())]
    except (OSError, FileAbsent) as error:
        raise _unreadable(path, error) from None


def layouts_to_json(layouts: Sequence[Layout]) -> list[Any]:
    """Convert layouts to JSON values."""
    return [[layout.shape, layout.dtype.str, layout.fortran, layout.head] for layout in layouts]


def layouts_from_json(values: list[Any]) -> tuple[Layout, ...]:
    """Convert JSON values to layouts.

    Raises:
        ValueError, TypeError: If a layout is invalid, or its dtype is not a plain number.
    """
    layouts = tuple(Layout(tuple(shape), np.dtype(dtype), *rest) for shape, dtype, *rest in values)
    if any(layout.dtype.kind not in PLAIN for layout in layouts):
        raise ValueError("an array does not contain plain numbers")
    if any(not isinstance(size, int) or size < 0 for layout in layouts for size in (*layout.shape, layout.head)):
        raise ValueError("a size is negative")
    return layouts


def _unreadable(path: str, error: Exception) -> UserError:
    tar = path.removesuffix(SUFFIX)
    return UserError(
        f"{tar}: cannot read its index '{path}' ({error}). "
        f"Write one: emollama pack --index '{tar}' (with --output FOLDER if the folder of the tar is not writable)."
    )


def _require_within(entries: np.ndarray, layouts: Sequence[Layout], size: int) -> None:
    """Raise a ValueError if an array has an unknown layout, or is not inside a shard of this size."""
    last = np.zeros(len(layouts), np.uint64)
    if entries["kind"].max() >= len(layouts):
        raise ValueError("an array has an unknown layout")
    np.maximum.at(last, entries["kind"], entries["offset"])
    if any(offset + layout.nbytes > size for offset, layout in zip(last.tolist(), layouts, strict=True)):
        raise ValueError("an array is beyond the end of its shard")


class _Member(NamedTuple):
    """An array: its layout, the offset of its values in the shard, and the checksums of its headers and of its values."""

    layout: Layout
    offset: int
    check: int
    checksum: int


def _read_members(
    tar_members: Iterable[tarfile.TarInfo], file: IO[bytes], shown: str, checksums: Mapping[str, int]
) -> tuple[dict[str, _Member], Counter[str]]:
    """Return name -> description of each array, and the number of other members by extension."""
    members: dict[str, _Member] = {}
    skipped: Counter[str] = Counter()
    for member in tar_members:
        problem = unsafe_member(member)
        # macOS stores the attributes of a file a.npy in ._a.npy.
        is_array = member.name.endswith(".npy") and not posixpath.basename(member.name).startswith("._")
        if problem is None and member.isfile() and not is_array:
            skipped[posixpath.splitext(member.name)[1].removeprefix(".")] += 1
        elif problem is None and member.isfile():
            name = posixpath.normpath(member.name).removesuffix(".npy")
            try:
                layout, offset = _layout(file, member)
            except ValueError as error:
                problem = f"is not an array of plain numbers: {error}"
            else:
                problem = "appears twice" if name in members else None
                checksum = checksums[name] if name in checksums else _crc32(file, layout.nbytes)
                file.seek(member.offset)
                members[name] = _Member(layout, offset, zlib.crc32(file.read(layout.head)), checksum)
        if problem is not None:
            raise UserError(f"{shown}: member '{member.name}' {problem}. Write the shard again without it.")
    return members, skipped


def _crc32(file: IO[bytes], size: int) -> int:
    """Return the CRC-32 of the next bytes of a file."""
    checksum = 0
    while size and (chunk := file.read(min(size, _CHUNK))):
        checksum, size = zlib.crc32(chunk, checksum), size - len(chunk)
    return checksum


def _layout(file: IO[bytes], member: tarfile.TarInfo) -> tuple[Layout, int]:
    """Return the layout of a member's array, and the offset of its values in the shard.

    Raises:
        ValueError: If the member is not an array of plain numbers, or its length differs from the one in its header.
    """
    file.seek(member.offset_data)
    shape, fortran, dtype = npy_header(file, member.offset_data + member.size)
    if dtype.kind not in PLAIN:
        raise ValueError(f"dtype {dtype}")
    offset = file.tell()
    return Layout(shape, dtype, fortran, offset - member.offset), offset

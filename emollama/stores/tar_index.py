"""The sidecar index of a tar shard: where each array lies in it, so that a clip is read without reading those before it.

``train-000.tar.idx.npz`` stands beside ``train-000.tar``, or in a folder of such files that name their tars. A shard may hold
.npy and .json files and nothing else: whatever could run code when it is read, or names a place outside, is refused when the
index is written; and reading by the index makes arrays of plain numbers only.
"""

from __future__ import annotations

import json
import math
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from emollama.errors import UserError
from emollama.paths import PATHS, atomic_write
from emollama.stores.name_index import ENTRY, join_names, make_entries, require_within
from emollama.stores.npy import npy_header

SUFFIX = ".idx.npz"
VERSION = 1
PLAIN = "fiub"  # kinds of dtypes: numbers that are nothing but their bytes
_DIRECTORY = 1024  # bytes at the end of a sidecar, in which a zip's directory lies


class Layout(NamedTuple):
    """How an array lies in its shard.

    Attributes:
        shape: of the array.
        dtype: of its values.
        fortran: the first axis is the fastest.
        head: bytes of the tar and npy headers before its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    head: int

    @property
    def nbytes(self) -> int:
        """Bytes of an array's values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TarIndex:
    """What a shard holds.

    Attributes:
        tar: where the shard lies, where that is not beside the index; else None.
        size: bytes of the shard.
        layouts: of the arrays.
        endings: how many members the names of webdataset give each ending: ``{"npy": 8}`` or ``{"face.npy": 8, "video.npy": 8}``.
        entries: (n,) of :data:`emollama.stores.name_index.ENTRY`; the name is the member's without ``.npy``.
        ends, names: the names, joined.
    """

    tar: str | None
    size: int
    layouts: tuple[Layout, ...]
    endings: dict[str, int]
    entries: np.ndarray
    ends: np.ndarray
    names: np.ndarray


def scan(local: str, shown: str, tar: str | None = None) -> TarIndex:
    """Read the headers of a shard.

    Args:
        local: its file.
        shown: what messages call it.
        tar: what the index will say of its place.

    Raises:
        UserError: no tar, cut short, or a member of another kind; names shard and member.
    """
    try:
        with tarfile.open(local, "r:") as shard, open(local, "rb") as file:
            found = _members(shard, file, shown)
            file.seek(shard.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise UserError(f"{shown}: cut short or damaged after {len(found)} arrays: no end mark. Write it again.")
            size = file.seek(0, 2)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shown}: not a whole, uncompressed tar: {error}. Write it again, or decompress it.") from None
    if not found:
        raise UserError(f"{shown}: holds no .npy file.")
    layouts = {layout: number for number, layout in enumerate(dict.fromkeys(layout for layout, _, _ in found.values()))}
    entries = make_entries(list(found))
    entries["kind"] = [layouts[layout] for layout, _, _ in found.values()]
    entries["offset"] = [offset for _, offset, _ in found.values()]
    entries["check"] = [check for _, _, check in found.values()]
    endings = Counter(posixpath.basename(f"{name}.npy").partition(".")[2] for name in found)
    return TarIndex(tar, size, tuple(layouts), dict(endings), entries, *join_names(list(found)))


def write(index: TarIndex, path: str | Path) -> None:
    """Write a sidecar."""
    layouts = layouts_to_json(index.layouts)
    about = {"version": VERSION, "tar": index.tar, "bytes": index.size, "layouts": layouts, "endings": index.endings}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with atomic_write(path, "wb") as file:
        np.savez(file, about=text, entries=index.entries, ends=index.ends, names=index.names)


def read(path: str) -> TarIndex:
    """Read a sidecar.

    Raises:
        UserError: there is none, or it is damaged or of another version.
    """
    try:
        with np.load(PATHS.get_local_path(path), allow_pickle=False) as arrays:
            about: dict[str, Any] = json.loads(arrays["about"].tobytes())
            if about["version"] != VERSION or arrays["entries"].dtype != ENTRY:
                raise ValueError(f"of version {about['version']}, expected {VERSION}")
            columns = arrays["entries"], arrays["ends"], arrays["names"]
        index = TarIndex(about["tar"], about["bytes"], layouts_from_json(about["layouts"]), about["endings"], *columns)
        if not len(index.entries) or len(index.ends) != len(index.entries):
            raise ValueError("no arrays, or not as many as names")
        require_within(index.entries, [layout.nbytes for layout in index.layouts], [index.size])
        return index
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, EOFError, BadZipFile) as error:
        tar = path.removesuffix(SUFFIX)
        raise UserError(
            f"{tar}: no index of it can be read from '{path}' ({error}). "
            f"Write one: emollama pack --index '{tar}' (with --output FOLDER where it may not stand beside the tar)."
        ) from None


def fingerprint(path: str | Path) -> list[int]:
    """Size of a sidecar and checksum of its end, where a zip keeps the checksums of everything in it."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _DIRECTORY))
        return [size, zlib.crc32(file.read())]


def layouts_to_json(layouts: Sequence[Layout]) -> list[Any]:
    """Layouts in JSON."""
    return [[layout.shape, layout.dtype.str, layout.fortran, layout.head] for layout in layouts]


def layouts_from_json(described: list[Any]) -> tuple[Layout, ...]:
    """Layouts from JSON.

    Raises:
        ValueError, TypeError: none, or of arrays that would read objects, whoever wrote them.
    """
    layouts = tuple(Layout(tuple(shape), np.dtype(dtype), *rest) for shape, dtype, *rest in described)
    if any(layout.dtype.kind not in PLAIN for layout in layouts):
        raise ValueError("arrays of other things than plain numbers")
    if any(not isinstance(size, int) or size < 0 for layout in layouts for size in (*layout.shape, layout.head)):
        raise ValueError("sizes below zero")
    return layouts


def _members(shard: tarfile.TarFile, file: IO[bytes], shown: str) -> dict[str, tuple[Layout, int, int]]:
    """Name -> layout, where the values begin, checksum of the headers."""
    found: dict[str, tuple[Layout, int, int]] = {}
    while (member := shard.next()) is not None:
        shard.members.clear()  # type: ignore[attr-defined]  # or all would be kept
        problem = _problem(member)
        if problem is None and member.name.endswith(".json"):
            problem = _json_problem(file, member)
        elif problem is None and member.isfile():
            name = posixpath.normpath(member.name).removesuffix(".npy")
            try:
                layout, offset = _layout(file, member)
            except ValueError as error:
                problem = f"is no array of plain numbers: {error}"
            else:
                problem = "stands there twice" if name in found else None
                file.seek(member.offset)
                found[name] = layout, offset, zlib.crc32(file.read(layout.head))
        if problem is not None:
            raise UserError(f"{shown}: member '{member.name}' {problem}. Write the shard again without it.")
    return found


def _problem(member: tarfile.TarInfo) -> str | None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "names a place outside the shard"
    if member.isdir():
        return None
    if not member.isfile() or member.issparse():
        return "is a link, a device or another special file"
    if not member.name.endswith((".npy", ".json")):
        return "is neither .npy nor .json"
    return None


def _json_problem(file: IO[bytes], member: tarfile.TarInfo) -> str | None:
    file.seek(member.offset_data)
    try:
        json.loads(file.read(member.size))
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return None


def _layout(file: IO[bytes], member: tarfile.TarInfo) -> tuple[Layout, int]:
    """How a member's array lies, and where its values begin.

    Raises:
        ValueError: it is no array of plain numbers, or not as long as its header says.
    """
    file.seek(member.offset_data)
    shape, fortran, dtype = npy_header(file)
    if dtype.kind not in PLAIN:
        raise ValueError(f"dtype {dtype}")
    offset = file.tell()
    layout = Layout(shape, dtype, fortran, offset - member.offset)
    lacking = offset + layout.nbytes - member.offset_data - member.size
    if lacking:
        raise ValueError(f"{abs(lacking)} bytes {'are missing' if lacking > 0 else 'too many'} at its end")
    return layout, offset

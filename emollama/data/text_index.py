"""The texts of a dataset in a file of the user's cache folder, which processes map instead of reading the annotation files again.

The file has a checksum of everything that follows, so that a damaged index is replaced, then a line of JSON, and then arrays. The
JSON names the annotation files with their stamps, so that a changed file is read again.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emollama.data.annotations import Table
from emollama.data.text_table import ClipRows, from_arrays, to_arrays
from emollama.paths import atomic_write

_ALIGNMENT = 8  # bytes; the arrays of the file begin at multiples of it
_CHECKSUM = 8  # bytes at the begin of the file: hexadecimal digits
_BLOCK = 1 << 20  # bytes that are read at a time
# A file that is younger could change again without a new time, because file systems round times.
_SETTLED_SECONDS = 2.0


class TextFile(NamedTuple):
    """A file from which an index is made, as it was before it was read.

    Attributes:
        path: the absolute path.
        stamp: size, modification time, change time and inode; empty if there is no file.
    """

    path: str
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: str) -> TextFile:
        """Return the current state of a file."""
        try:
            status = os.stat(path)
        except OSError:
            return cls(os.path.abspath(path), ())
        return cls(os.path.abspath(path), (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


class IndexedTexts(NamedTuple):
    """The content of an index.

    Attributes:
        table: the texts.
        clips: the selected clips of the table, with mapped labels.
        notes: lines for the log about the selection.
    """

    table: Table
    clips: ClipRows
    notes: list[str]


def read(path: Path, sources: Sequence[TextFile]) -> IndexedTexts | None:
    """Open an index that was made from files that have not changed; None if there is none, or it is damaged."""
    try:
        with open(path, "rb") as file:
            expected, line = file.read(_CHECKSUM), file.readline()
            start, checksum = file.tell(), zlib.crc32(line)
            # Reading does not map pages, so that a process that uses few texts keeps few.
            while block := file.read(_BLOCK):
                checksum = zlib.crc32(block, checksum)
            if expected != b"%0*x" % (_CHECKSUM, checksum):
                raise ValueError("the checksum differs")
            header = json.loads(line)
            if header["sources"] != [[source.path, list(source.stamp)] for source in sources]:
                return None
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # The texts of a batch are at random places, and pages around them would not be used.
        content.madvise(mmap.MADV_RANDOM)
        arrays = {
            name: np.frombuffer(content, np.dtype(dtype), count, start + offset) if count else np.zeros(0, dtype)
            for name, (dtype, count, offset) in header["arrays"].items()
        }
        table, rows = from_arrays(header["table"], arrays)
        clips = ClipRows(rows.source, arrays["selected"], header["labels"])
        return IndexedTexts(table, clips, header["notes"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = "%s: this index of texts cannot be used (%s); the annotation files are read again"
        logging.getLogger("emollama").warning(text, path, error)
        return None


def write(path: Path, sources: Sequence[TextFile], texts: IndexedTexts) -> bool:
    """Write an index if the cache folder is writable and all files are old enough; return whether it was written."""
    newest = max((time_ns for source in sources for time_ns in source.stamp[1:3]), default=0)
    if path == Path(os.devnull) or time.time() - newest / 1e9 < _SETTLED_SECONDS:
        return False
    description, arrays = to_arrays(texts.table)
    arrays["selected"] = texts.clips.rows
    places, parts, offset = {}, [], 0
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        padding = bytes(-little.nbytes % _ALIGNMENT)
        places[name] = little.dtype.str, len(little), offset
        parts += [little.tobytes(), padding]
        offset += little.nbytes + len(padding)
    selection = {"labels": list(texts.clips.labels), "notes": texts.notes}
    line = json.dumps({"sources": sources, "arrays": places, "table": description, **selection}).encode()
    parts.insert(0, line + b" " * (-(len(line) + 1) % _ALIGNMENT) + b"\n")
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    try:
        # A reader compares the checksum, so that the file need not reach the disk before it is renamed.
        with atomic_write(path, "wb", durable=False) as file:
            file.write(b"%0*x" % (_CHECKSUM, checksum))
            file.writelines(parts)
    except OSError:
        return False
    return True

"""The one way to files: local paths, and whatever else is registered with iopath's path manager."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathManager

from emollama.errors import UserError

PATHS = PathManager()


def join(root: str | None, path: str) -> str:
    """``path`` seen from ``root``; an absolute path, or no root, leaves it as it is."""
    return os.path.join(root, path) if root else path


def require_file(path: str, key: str) -> str:
    """The path, if it is a file.

    Raises:
        UserError: naming the configuration key.
    """
    if not PATHS.isfile(path):
        raise UserError(f"{key}: no file '{path}' (seen from {os.getcwd()}). Correct the path.")
    return path


def read_text(path: str) -> str:
    """The whole file as UTF-8 text (a byte order mark is dropped).

    Raises:
        UserError: the file is not UTF-8, with the offending byte's position.
    """
    with PATHS.open(path, "rb") as file:
        raw = file.read()
    try:
        return str(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None


def require_writable(folder: Path, key: str) -> None:
    """Check that files can be written under a folder, which need not exist yet; nothing is left behind.

    Raises:
        UserError: naming the configuration key.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{key}: cannot write under '{existing}': {error.strerror}. Name another folder.") from None


@contextmanager
def written_whole(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file so that it is there completely or not at all: a temporary name, flushed to disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with PATHS.open(str(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

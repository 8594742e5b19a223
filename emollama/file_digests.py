"""Files with their SHA-256 in a file next to them, ``<name>.sha256``; they are hashed while they are written or read."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from emollama.errors import UserError
from emollama.paths import PATHS

T = TypeVar("T")
LARGEST_GAP = 1 << 16  # bytes that a reader may skip at a time; larger steps forward do not read what is between
CHUNK = 1 << 20  # bytes


class HashedFile:
    """A file that is written from its beginning to its end, and hashed meanwhile, so that it need not be read again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes; returns their number."""
        self._hash.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all bytes."""
        return self._hash.hexdigest()

    def flush(self) -> None:
        """Pass all bytes to the operating system."""
        self._file.flush()


class HashingReader(io.RawIOBase):
    """An open file whose bytes are hashed when they are first read.

    torch.load reads the end of a checkpoint, a few small parts, and then all tensors in the order of the file, so that only the
    small parts are read a second time, and no copy of the file is in memory.

    Args:
        file: the file, which stays open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file: Any = file
        self._hash = hashlib.sha256()
        self._hashed = 0  # number of bytes at the beginning of the file that are in the hash

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the number of the open file."""
        return int(self._file.fileno())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, and return it."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return their number."""
        start = self.tell()
        if self._hashed < start <= self._hashed + LARGEST_GAP:
            self._hash_until(start)
            self.seek(start)
        count = int(self._file.readinto(buffer))
        if start <= self._hashed < start + count:
            self._hash.update(memoryview(buffer)[self._hashed - start : count])
            self._hashed = start + count
        return count

    def hexdigest(self) -> str:
        """Return the SHA-256 of the whole file; bytes that were not read yet are read now."""
        self._hash_until(None)
        return self._hash.hexdigest()

    def _hash_until(self, end: int | None) -> None:
        """Read and hash the bytes up to a position, by default the end of the file."""
        self.seek(self._hashed)
        while data := self._file.read(CHUNK if end is None else min(CHUNK, end - self._hashed)):
            self._hash.update(data)
            self._hashed += len(data)


class DamagedError(UserError):
    """A file that does not match its digest, or that has another ``problem``.

    Attributes:
        problem: the message without the configuration key.
    """

    def __init__(self, key: str, path: str | Path, problem: str = "") -> None:
        self.problem = problem or damage(path)
        super().__init__(f"{key}: {self.problem}" if key else self.problem)


def digest_path(path: str | Path) -> Path:
    """Return the path of a checkpoint's digest."""
    return Path(f"{path}.sha256")


def is_intact(path: str | Path) -> bool | None:
    """Return whether a file matches its digest, or None if it has no digest.

    Raises:
        OSError: If the file cannot be read.
    """
    intact, _ = read_once(path, lambda file: None)
    return intact


def require_intact(path: str | Path, key: str = "") -> None:
    """Check that a file matches its digest, if it has one.

    Args:
        path: the file.
        key: the configuration key or option with the path, for messages.

    Raises:
        DamagedError: If it does not.
        OSError: If the file cannot be read.
    """
    if is_intact(path) is False:
        raise DamagedError(key, path)


def matches(path: str | Path, content: HashedFile | HashingReader) -> bool | None:
    """Return whether the digest next to a file is that of this content, or None if the file has no digest."""
    digest = digest_path(path)
    return content.hexdigest() in stored_digests(digest) if os.path.lexists(digest) else None


def read_once(path: str | Path, use: Callable[[IO[bytes]], T]) -> tuple[bool | None, T | Exception]:
    """Open a file, which a training may replace at any moment, read it with a function, and compare it with its digest.

    Returns:
        Whether the file matches its digest, None without a digest; and the result of the function, or its exception.
    """
    while True:
        with PATHS.open(str(path), "rb") as opened:
            file = HashingReader(opened)
            result: T | Exception
            try:
                result = use(cast("IO[bytes]", file))
            except Exception as error:  # damage is the more helpful message, which the digest shows
                result = error
            intact = matches(path, file)
            # The digest of a file that was replaced meanwhile is that of the new file.
            if intact is not False or os.path.samestat(os.fstat(opened.fileno()), os.stat(path)):
                return intact, result


def damage(path: str | Path) -> str:
    """Return a message about a file for which :func:`is_intact` returns False."""
    digest = digest_path(path)
    if stored_digests(digest):
        return f"{path} was changed after it was saved: its SHA-256 differs from {digest}. Use another checkpoint."
    return (
        f"{path}: {digest} is damaged, because it contains no SHA-256. If you know that the checkpoint is intact, delete"
        " that file. Otherwise use another checkpoint."
    )


def stored_digests(digest: Path) -> list[str]:
    """Return the digests in a file of digests; an empty list if it does not exist or is damaged."""
    try:
        lines = digest.read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError):
        return []
    return [match[1].decode().lower() for line in lines if (match := re.match(rb"([0-9a-fA-F]{64})\b", line))]

"""A file that is hashed while it is written."""

from __future__ import annotations

import hashlib
from typing import IO


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

"""A cache of successful checks, so that unchanged files are not checked again.

Only files that passed are cached, in the user's cache folder (``$XDG_CACHE_HOME``, or ``~/.cache``). Without a writable cache
folder, everything is checked each time. The first line of a cache file is the digest of the rest, so that a damaged file is not
used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from emollama.paths import atomic_write, cache_folder

Stamp = tuple[int, ...]
VERSION = 2  # increase it when the checks change, so that cached results are ignored


@dataclass
class ValidationCache:
    """Results of successful checks by name, each with the stamp of the file that was checked.

    Attributes:
        path: the cache file.
        entries: name -> "stamp;result". Plain strings load faster than nested JSON.
    """

    path: Path
    entries: dict[str, str] = field(default_factory=dict)
    _modified: bool = False

    @classmethod
    def load(cls, kind: str, *settings: str) -> ValidationCache:
        """Load the cache of one kind of check; ``settings`` is everything that the result depends on besides the stamps."""
        path = cache_path(kind, "json", *settings)
        return cls(path, json.loads(read_verified(path) or b"{}"))

    def get(self, name: str, stamp: Stamp) -> str | None:
        """Return the cached result for a name and stamp; None if there is no such result or the stamp is empty."""
        cached_stamp, _, result = str(self.entries.get(name)).partition(";")
        return result if stamp and cached_stamp == str(stamp) else None

    def add(self, name: str, stamp: Stamp, result: str) -> None:
        """Cache the result of a successful check."""
        self.entries[name] = f"{stamp};{result}"
        self._modified = True

    def save(self) -> None:
        """Write new results to the cache file, if the cache folder is writable."""
        if self._modified:
            write_verified(self.path, json.dumps(self.entries).encode())


def cache_path(kind: str, suffix: str, *settings: str) -> Path:
    """Return the path of a cache file, or os.devnull without a cache folder.

    Args:
        kind: the kind of check.
        suffix: of the file.
        settings: everything that the results depend on besides the stamps.
    """
    digest = hashlib.sha256(json.dumps([VERSION, *settings]).encode()).hexdigest()[:24]
    try:
        return cache_folder() / f"{kind}-{digest}.{suffix}"
    except RuntimeError:
        # The user has no home directory.
        return Path(os.devnull)


def files_of(folder: str) -> str:
    """Return names, sizes and times of the files in a folder as text; "" if the folder does not exist."""
    try:
        stamps = [(entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        return ""
    return str(sorted((name, status.st_size, status.st_mtime_ns) for name, status in stamps))


@functools.cache
def code_stamps(*packages: str) -> str:
    """Return the state of the modules in packages such as ``data``, because other code may have other results."""
    return "".join(files_of(str(Path(__file__).parents[1] / name)) for name in packages)


def read_verified(path: Path) -> bytes:
    """Return the content of a cache file; nothing if it does not exist or is damaged."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
        problem = "it is damaged" if _digest(content) != digest else ""
    except FileNotFoundError:
        return b""
    except OSError as error:
        problem = str(error.strerror)
    if problem and path != Path(os.devnull):
        text = "%s: this cache cannot be used (%s); everything is checked again"
        logging.getLogger("emollama").warning(text, path, problem)
    return b"" if problem else content


def write_verified(path: Path, content: bytes) -> None:
    """Write a cache file with its digest, if the cache folder is writable."""
    if path != Path(os.devnull):
        with contextlib.suppress(OSError), atomic_write(path, "wb") as file:
            file.write(_digest(content) + b"\n" + content)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()

"""Local copies of remote files, which are kept in a folder and checked for changes once in each process.

A copy appears only when it is complete. One process downloads a file, and others wait for it and use its copy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from emollama.errors import DownloadError, ServerFailure

_STATE = "state.json"  # what the server said about the copy; written last, so that a copy without it is not complete
_REMEDY = "Free some space there, or set the environment variable XDG_CACHE_HOME to another folder."


@dataclass(frozen=True)
class Version:
    """What a server says about the content of a file. A changed file differs in at least one attribute.

    Attributes:
        etag: identifier of the content, if the server has one.
        modified: date of the last change, if the server states it.
        size: size in bytes, if the server states it.
    """

    etag: str | None
    modified: str | None
    size: int | None

    @property
    def is_reliable(self) -> bool:
        """Whether a file with an equal version has the same content: the size alone does not show a change."""
        return bool(self.etag or self.modified)


class Transport(Protocol):
    """A protocol by which files are downloaded."""

    def exists(self, url: str) -> bool:
        """Return whether there is such a file.

        Raises:
            DownloadError: If the server does not say.
        """
        ...

    def download(self, url: str, earlier: Version | None, file: BinaryIO) -> Version | None:
        """Write the complete content of a file to ``file``, and return its version.

        Args:
            url: the file.
            earlier: the version of an earlier copy; if the file still has it, None is returned and nothing is downloaded.
            file: an empty file, open for writing.

        Raises:
            FileAbsent: If there is no such file.
            ServerFailure: If the server does not answer or fails, so that an earlier copy can be used.
            DownloadError: If the file cannot be read for another reason.
        """
        ...


class Downloads:
    """The local copies of remote files.

    Args:
        transport: downloads the files.
        folder: returns the folder of the copies, which may not exist.
    """

    def __init__(self, transport: Transport, folder: Callable[[], Path]) -> None:
        self._transport, self._folder = transport, folder
        # Files that this process has checked: it uses one version of each, even if the file changes during a run.
        self._paths: dict[str, str] = {}
        self._silent: set[str] = set()  # servers that could not be reached, which are not tried again for each of many copies

    def exists(self, url: str) -> bool:
        """Return whether there is such a file; a copy of a file whose server cannot be reached counts.

        Raises:
            DownloadError: If the server does not say, and there is no copy.
        """
        if url in self._paths:
            return True
        copy = self._copy_folder(url)
        if _read_state(copy) is not None and _server(url) in self._silent:
            return True
        try:
            return self._transport.exists(url)
        except ServerFailure as error:
            if _read_state(copy) is None:
                raise
            self._warn(url, error)
            return True

    def local_path(self, url: str) -> str:
        """Return the path of a complete copy, which is downloaded if there is none, or if the file has changed.

        If the server cannot be reached, an earlier copy is used with a warning.

        Raises:
            DownloadError: If there is no copy and the file cannot be downloaded, or it does not exist any more.
        """
        from filelock import FileLock

        if url not in self._paths or not os.path.isfile(self._paths[url]):
            folder = self._copy_folder(url)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / ".lock"):
                    self._paths[url] = self._update(url, folder)
            except (OSError, NotImplementedError) as error:  # NotImplementedError: the file system has no locks
                reason = getattr(error, "strerror", None) or error
                raise DownloadError(f"'{url}': cannot write its copy into '{folder}': {reason}. {_REMEDY}") from None
        return self._paths[url]

    def _update(self, url: str, folder: Path) -> str:
        """Download a file if it has changed, and return the path of its copy. The caller has locked its folder."""
        path, earlier = folder / _file_name(url), _read_state(folder)
        if earlier is not None and _server(url) in self._silent:
            return str(path)
        partial = folder / ".partial"
        try:
            with open(partial, "wb") as file:
                version = self._transport.download(url, earlier, file)
                file.flush()
                os.fsync(file.fileno())
            if version is not None:
                (folder / _STATE).unlink(missing_ok=True)
                partial.replace(path)
                _write_state(folder, url, version)
        except ServerFailure as error:
            if earlier is None:
                raise
            self._warn(url, error)
        finally:
            partial.unlink(missing_ok=True)
        return str(path)

    def _copy_folder(self, url: str) -> Path:
        try:
            urlsplit(url)
        except ValueError as error:
            raise DownloadError(f"'{url}': {error}. Correct the URL.") from None
        try:
            return self._folder() / hashlib.sha256(url.encode()).hexdigest()[:32]
        except RuntimeError as error:
            raise DownloadError(f"'{url}': there is no folder for its copy: {error}. {_REMEDY}") from None

    def _warn(self, url: str, error: ServerFailure) -> None:
        """Warn that a copy is used without a check, only once for each server that cannot be reached."""
        if not error.answered:
            self._silent.add(_server(url))
        which = "its copy, which was" if error.answered else "the copies of this server's files that were"
        logging.getLogger("emollama").warning("%s Using %s downloaded earlier.", error, which)


def _server(url: str) -> str:
    return urlsplit(url).netloc


def _file_name(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", name)[-100:].lstrip(".") or "file"


def _read_state(folder: Path) -> Version | None:
    """Return the version of the complete copy in a folder; None without one."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if (folder / _file_name(state["url"])).stat().st_size != state["bytes"]:
            return None
        return Version(**state["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_state(folder: Path, url: str, version: Version) -> None:
    size = (folder / _file_name(url)).stat().st_size
    temporary = folder / f".{_STATE}"
    temporary.write_text(json.dumps({"url": url, "bytes": size, "version": asdict(version)}), encoding="utf-8")
    temporary.replace(folder / _STATE)

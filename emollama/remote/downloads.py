"""Local copies of remote files, which are kept in a folder and checked for changes once in each process.

A copy appears only when it is complete. One process downloads a file, and others wait for it and use its copy. A new version gets
a folder of its own, because other runs may still read an earlier one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from emollama.disk import remedy
from emollama.errors import DownloadError, FileAbsent, ServerFailure
from emollama.heartbeat import beat
from emollama.remote.transport import Transport, Version, shown

_ANSWER = "version.json"  # the version that the server last stated, for the other processes of a run
_STATE = "state.json"  # what the server said about the copy; written last, so that a copy without it is not complete
_OTHER_FOLDER = "set the environment variable XDG_CACHE_HOME to another folder"
_KEPT = 30 * 24 * 3600.0  # seconds for which a replaced version is kept, because runs may still read it
_POLL = 10.0  # seconds between two reports of a process that waits for another one
_CHUNK = 1 << 20  # bytes


class Downloads:
    """The local copies of remote files.

    Args:
        transport: reads the files from their servers.
        folder: returns the folder of the copies, which may not exist.
        poll: seconds between two reports of progress while another process downloads a file.

    Attributes:
        transport: reads files, or parts of them, from their servers.
    """

    def __init__(self, transport: Transport, folder: Callable[[], Path], poll: float = _POLL) -> None:
        self.transport, self._folder, self._poll = transport, folder, poll
        # A copy that another process has checked since then counts as checked: the processes of a run use the same version.
        self._start = time.time()
        # Files that this process has checked: it uses one version of each, even if the file changes during a run.
        self._paths: dict[str, str] = {}
        self._present: set[str] = set()  # files that exist, as their servers said
        self._silent: set[str] = set()  # servers that could not be reached, which are not tried again for each of many copies

    def exists(self, url: str) -> bool:
        """Return whether there is such a file; a copy of a file whose server cannot be reached counts.

        Raises:
            DownloadError: If the server does not say, and there is no copy.
        """
        if url in self._paths or url in self._present:
            return True
        copy = self._copy_folder(url)
        if _server(url) in self._silent:
            if _read_state(copy) is None:
                raise self._not_tried(url)
            return True
        try:
            self.version(url)
        except FileAbsent:
            return False
        except ServerFailure as error:
            if _read_state(copy) is None:
                raise
            self._warn(url, error)
            return True
        self._present.add(url)
        return True

    def version(self, url: str) -> Version:
        """Return the version of a file, which is not downloaded. Of the processes of a run, the first one asks the server.

        Raises:
            FileAbsent, ServerFailure, DownloadError: As for :meth:`emollama.remote.transport.Transport.version`.
        """
        path = self._copy_folder(url) / _ANSWER
        if (version := _read_answer(path, self._start)) is not None:
            return version
        version = self.transport.version(url)
        # If it cannot be written, the other processes ask, too.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"version": asdict(version), "checked": time.time()}), encoding="utf-8")
        return version

    def local_path(self, url: str) -> str:
        """Return the path of a complete copy, which is downloaded if there is none, or if the file has changed.

        If the server cannot be reached, an earlier copy is used with a warning.

        Raises:
            DownloadError: If there is no copy and the file cannot be downloaded, or it does not exist any more.
        """
        if self._is_checked(url):
            return self._paths[url]
        folder = self._copy_folder(url)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked(folder, url):
                # Another thread may have downloaded the file in the meantime.
                if not self._is_checked(url):
                    self._paths[url] = str(self._update(url, folder))
        except NotImplementedError as error:  # the file system has no locks
            raise DownloadError(
                f"'{shown(url)}': cannot write its copy into '{folder}': {error}. {remedy(error, _OTHER_FOLDER)}"
            ) from None
        except OSError as error:
            text = f"'{shown(url)}': cannot write its copy into '{folder}': {error.strerror or error}"
            raise DownloadError(f"{text}. {remedy(error, _OTHER_FOLDER)}") from None
        return self._paths[url]

    def _is_checked(self, url: str) -> bool:
        return url in self._paths and os.path.isfile(self._paths[url])

    @contextmanager
    def _locked(self, folder: Path, url: str) -> Iterator[None]:
        """Lock a folder. While another process downloads into it, waiting counts as progress."""
        from filelock import FileLock, Timeout

        lock = FileLock(folder / ".lock")
        is_reported = False
        while True:
            try:
                lock.acquire(timeout=self._poll)
                break
            except Timeout:
                beat()
                if not is_reported:
                    logging.getLogger("emollama").info("waiting for another process that downloads %s", shown(url))
                is_reported = True
        try:
            yield
        finally:
            lock.release()

    def _update(self, url: str, folder: Path) -> Path:
        """Download a file if it has changed, and return the path of its copy. The caller has locked its folder."""
        earlier = _read_state(folder)
        if earlier is None and _server(url) in self._silent:
            raise self._not_tried(url)
        if earlier is not None and (_server(url) in self._silent or earlier.checked >= self._start):
            return earlier.path
        partial = folder / ".partial"
        try:
            with open(partial, "wb") as file:
                version = self.transport.download(url, None if earlier is None else earlier.version, file)
                file.flush()
                os.fsync(file.fileno())
            if version is None and earlier is not None:
                path, version = earlier.path, earlier.version
            else:
                path = _store_copy(partial, folder, _file_name(url), earlier)
            _write_state(folder, url, path, version)
        except ServerFailure as error:
            if earlier is None:
                raise
            self._warn(url, error)
            return earlier.path
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _not_tried(self, url: str) -> ServerFailure:
        """Return the error for a file without a copy on a server that could not be reached for another file."""
        text = f"'{shown(url)}': its server could not be reached before, and there is no copy of this file"
        return ServerFailure(f"{text}. Check the network and the server, and start again.", False)

    def _copy_folder(self, url: str) -> Path:
        try:
            urlsplit(url)
        except ValueError as error:
            raise DownloadError(f"'{shown(url)}': {error}. Correct the URL.") from None
        try:
            return self._folder() / hashlib.sha256(url.encode()).hexdigest()[:32]
        except RuntimeError as error:
            what = f"{_OTHER_FOLDER[0].upper()}{_OTHER_FOLDER[1:]}"
            raise DownloadError(f"'{shown(url)}': there is no folder for its copy: {error}. {what}.") from None

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


@dataclass(frozen=True)
class _Copy:
    """A complete copy.

    Attributes:
        path: the copy.
        version: its version.
        checked: time at which the server last said that the file has this version, in seconds.
    """

    path: Path
    version: Version
    checked: float


def _read_answer(path: Path, since: float) -> Version | None:
    """Return the version that a server has stated since then; None if no process has asked, or is just writing the answer."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
        return Version(**answer["version"]) if answer["checked"] >= since else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_state(folder: Path) -> _Copy | None:
    """Return the complete copy in a folder; None without one."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        path = folder / state["copy"]
        if path.stat().st_size != state["bytes"]:
            return None
        return _Copy(path, Version(**state["version"]), float(state["checked"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_state(folder: Path, url: str, path: Path, version: Version | None) -> None:
    state = {"url": shown(url), "copy": str(path.relative_to(folder)), "bytes": path.stat().st_size, "checked": time.time()}
    temporary = folder / f".{_STATE}"
    temporary.write_text(json.dumps(state | {"version": version and asdict(version)}), encoding="utf-8")
    temporary.replace(folder / _STATE)


def _store_copy(partial: Path, folder: Path, name: str, earlier: _Copy | None) -> Path:
    """Move a complete download into a folder of its own, and return its path; an earlier copy with the same bytes is kept."""
    if earlier is not None and _same_bytes(partial, earlier.path):
        return earlier.path
    for other in [entry for entry in folder.iterdir() if entry.is_dir()]:
        if earlier is not None and other == earlier.path.parent:
            # Its age counts from the day on which it was replaced.
            os.utime(other)
        elif time.time() - other.stat().st_mtime > _KEPT:
            shutil.rmtree(other, ignore_errors=True)
    target = folder / f"{time.time_ns():x}"
    target.mkdir()
    return partial.replace(target / name)


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        while chunk := first.read(_CHUNK):
            if chunk != second.read(_CHUNK):
                return False
            beat()
    return True

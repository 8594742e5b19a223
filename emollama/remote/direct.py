"""Parts, versions and temporary copies of remote files: nothing stays on the disk."""

from __future__ import annotations

from typing import BinaryIO

from emollama.errors import DownloadError
from emollama.remote.handler import RemoteFiles
from emollama.remote.manager import PATHS
from emollama.remote.transport import RESTART, Version, shown


def read_part(url: str, begin: int, size: int) -> tuple[bytes, Version]:
    """Return a part of a remote file, and the version of the file as far as the server states it.

    Raises:
        DownloadError: If it cannot be read.
    """
    handler = _handler(url)
    if isinstance(handler, RemoteFiles):
        return handler.transport.read(url, begin, size)
    try:
        with PATHS.open(url, "rb") as file:
            file.seek(begin)
            content = file.read(size)
    except Exception as error:  # a handler of the user may raise anything
        raise DownloadError(f"'{shown(url)}' cannot be read ({type(error).__name__}: {error}). Correct the path.") from None
    if len(content) != size:
        raise DownloadError(f"'{shown(url)}': the file ends before byte {begin + size:,}. {RESTART}")
    return content, Version(None, None, None)


def download_temporarily(url: str, file: BinaryIO) -> Version:
    """Write the whole content of a remote file to ``file``, and return its version.

    Raises:
        DownloadError: If it cannot be read.
    """
    version = _remote_files(url).transport.download(url, None, file)
    assert version is not None
    return version


def file_version(url: str) -> Version:
    """Return the version of a remote file.

    Raises:
        DownloadError: If the server does not state what shows a change.
    """
    version = _remote_files(url).version(url)
    if not version.is_reliable or version.size is None:
        text = "the server does not state size and ETag (or date) of the file, so a change would not be noticed"
        raise DownloadError(f"'{shown(url)}': {text}. Set stream: False, or use another server.")
    return version


def _remote_files(url: str) -> RemoteFiles:
    handler = _handler(url)
    if not isinstance(handler, RemoteFiles):
        raise DownloadError(f"'{shown(url)}': a handler of your own cannot index a streamed tar. Set stream: False.")
    return handler


def _handler(url: str) -> object:
    return next((handler for prefix, handler in PATHS._path_handlers.items() if url.startswith(prefix)), None)

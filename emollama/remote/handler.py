"""Handlers of iopath's path manager for HTTP and for object stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathHandler

from emollama.errors import UserError
from emollama.remote.downloads import Downloads
from emollama.remote.http import Http
from emollama.remote.object_stores import PACKAGES, ObjectStores
from emollama.remote.transport import Version, shown


class RemoteFiles(PathHandler):  # type: ignore[misc]
    """Reads remote files from their local copies. iopath calls these methods; folders cannot be listed.

    Args:
        schemes: the first parts of the URLs that it reads, such as ``https``.
        downloads: the local copies.

    Attributes:
        transport: reads files, or parts of them, from their servers.
    """

    def __init__(self, schemes: Sequence[str], downloads: Downloads) -> None:
        super().__init__()
        self._schemes, self._downloads = schemes, downloads
        self.transport = downloads.transport

    def version(self, path: str) -> Version:
        """Return the version of a file; see :meth:`emollama.remote.downloads.Downloads.version`."""
        return self._downloads.version(path)

    def _get_supported_prefixes(self) -> list[str]:
        return [f"{scheme}://" for scheme in self._schemes]

    def _get_local_path(self, path: str, force: bool = False, **options: Any) -> str:
        return self._downloads.local_path(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> IO[Any]:
        if mode not in ("r", "rt", "rb"):
            raise UserError(f"'{shown(path)}': a file at a URL can only be read. Write to a local path.")
        return open(self._downloads.local_path(path), mode, buffering, **options)

    def _isfile(self, path: str, **options: Any) -> bool:
        return self._downloads.exists(path)


def handlers(folder: Callable[[], Path]) -> list[RemoteFiles]:
    """Return the handlers for HTTP and for object stores.

    Args:
        folder: returns the folder of the local copies.
    """
    http, object_stores = Downloads(Http(), folder), Downloads(ObjectStores(), folder)
    return [RemoteFiles(("http", "https"), http), RemoteFiles(list(PACKAGES), object_stores)]

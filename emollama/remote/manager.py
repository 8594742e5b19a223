"""iopath's path manager, which opens local and remote files, and the check of remote paths."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emollama.errors import DownloadError, UserError

if TYPE_CHECKING:
    from iopath.common.file_io import PathManager

FOLDER = "downloads"  # subfolder of the user's cache folder


def cache_folder() -> Path:
    """Return the user's cache folder, ``$XDG_CACHE_HOME/emollama`` or ``~/.cache/emollama``, which may not exist.

    Raises:
        RuntimeError: If the user has no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emollama"


@functools.cache
def _path_manager() -> PathManager:
    from iopath.common.file_io import PathManager

    from emollama.remote.handler import handlers

    manager = PathManager()
    for handler in handlers(lambda: cache_folder() / FOLDER):
        manager.register_handler(handler)
    return manager


class _Paths:
    """iopath's path manager, imported on first use, because many commands need only the other functions of this module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_path_manager(), name)


PATHS = _Paths()


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def require_handler(path: str, key: str) -> None:
    """Check that there is a handler for a URL.

    Raises:
        UserError: If there is none. The message names the configuration key.
    """
    prefixes = [prefix for prefix in PATHS._path_handlers if "://" in prefix]
    if not any(path.startswith(prefix) for prefix in prefixes):
        scheme, names = path.partition("://")[0], ", ".join(sorted(prefixes))
        remedy = "Correct the URL, or register a handler of iopath for it (emollama.paths.PATHS.register_handler)."
        raise UserError(f"{key}: '{path}': files at {scheme}:// cannot be read, only those at {names}. {remedy}")


def local_copy(path: str, key: str) -> str:
    """Return the path of the local copy of a remote file, which is downloaded if there is none or if the file has changed.

    Raises:
        UserError: If the file cannot be downloaded. The message names the configuration key, the URL and the reason.
    """
    require_handler(path, key)
    try:
        return str(PATHS.get_local_path(path))
    except DownloadError as error:
        raise UserError(f"{key}: {error}") from None
    except Exception as error:  # a handler of the user may raise anything
        reason = f"{type(error).__name__}: {error}".rstrip(". ")
        raise UserError(f"{key}: '{path}' cannot be downloaded ({reason}). Correct the path.") from None

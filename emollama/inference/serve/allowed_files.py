"""Files of the server that a client may name: those below the folder of ``--allow-files``, also not through links."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from emollama.errors import UserError
from emollama.inference.serve.errors import ApiError


class AllowedFiles:
    """The folder of ``--allow-files``.

    Args:
        folder: the folder; None allows no file.

    Raises:
        UserError: If the folder does not exist.
    """

    def __init__(self, folder: str | None) -> None:
        if folder is not None and not os.path.isdir(folder):
            raise UserError(f"--allow-files: no folder '{folder}' (current directory: {os.getcwd()}). Correct the path.")
        self._folder = None if folder is None else os.path.realpath(folder)

    def open(self, url: str, param: str) -> BinaryIO:
        """Open a file for reading.

        Args:
            url: a ``file://`` URL with an absolute path, or a path, which is relative to the folder unless it is absolute.
            param: the part of the request that contains the URL, for errors.

        Raises:
            ApiError: If files are not allowed, or this one is not. The error is the same for files that do not exist, so that it
                discloses nothing about files outside the folder.
        """
        if self._folder is None:
            message = "Files of the server are not allowed. Send a data: URL, or start the server with --allow-files FOLDER."
            raise ApiError(400, message, param=param, code="files_not_allowed")
        descriptor = self._open(_path(url, param))
        if descriptor is None:
            message = "There is no such file that can be read below the folder of --allow-files."
            raise ApiError(400, message, param=param, code="file_not_found")
        return os.fdopen(descriptor, "rb")

    def _open(self, path: str) -> int | None:
        """Open a regular file in the folder for reading; return None for any other path."""
        folder = str(self._folder)
        try:
            # O_PATH has no effect on devices and pipes, and the descriptor stays at its file if a link is replaced afterwards.
            handle = os.open(os.path.join(folder, path), os.O_PATH | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            link = f"/proc/self/fd/{handle}"
            real = os.readlink(link)
            if not Path(real).is_relative_to(folder) or not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        finally:
            os.close(handle)


def _path(url: str, param: str) -> str:
    """Return the path of a ``file://`` URL, or a path unchanged."""
    if not url.startswith("file:"):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("file:")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        message = "A file URL has the form file:///folder/file, with %-escapes."
        raise ApiError(400, message, param=param, code="invalid_url")
    return unquote(parts.path)

"""Files of the server that a client may name: those below the folder of ``--allow-files``.

Links are not followed, and ``..`` is refused: nothing outside the folder is even looked for, so that no answer tells whether it
exists.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
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
        # An absolute path of a client may begin with either name of the folder.
        self._folders = [] if folder is None else [os.path.abspath(folder), os.path.realpath(folder)]

    def open(self, url: str, param: str) -> BinaryIO:
        """Open a file for reading.

        Args:
            url: a ``file://`` URL with an absolute path, or a path, which is relative to the folder unless it is absolute.
            param: the part of the request that contains the URL, for errors.

        Raises:
            ApiError: If files are not allowed, or this one is not. The error is the same for files that do not exist, so that it
                discloses nothing about files outside the folder.
        """
        if not self._folders:
            message = "Files of the server are not allowed. Send a data: URL, or start the server with --allow-files FOLDER."
            raise ApiError(400, message, param=param, code="files_not_allowed")
        descriptor = self._open(_path(url, param))
        if descriptor is None:
            message = "There is no such file that can be read below the folder of --allow-files."
            raise ApiError(400, message, param=param, code="file_not_found")
        return os.fdopen(descriptor, "rb")

    def _open(self, path: str) -> int | None:
        """Open a regular file in the folder for reading; return None for any other path."""
        with ExitStack() as stack:
            # O_PATH has no effect on devices and pipes, and each step begins in the folder that was opened before: links that
            # another program puts there meanwhile lead nowhere.
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                handle = os.open(self._folders[-1], flags | os.O_DIRECTORY)
                stack.callback(os.close, handle)
                for step in self._steps(path):
                    handle = os.open(step, flags, dir_fd=handle)
                    stack.callback(os.close, handle)
                if stat.S_ISREG(os.fstat(handle).st_mode):
                    return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
            except (OSError, ValueError):
                pass
        return None

    def _steps(self, path: str) -> list[str]:
        """Return the names of the folders and of the file below the folder.

        Raises:
            ValueError: If the path leads elsewhere.
        """
        prefixes = [os.path.join(folder, "") for folder in self._folders]
        below = next((path.removeprefix(prefix) for prefix in prefixes if path.startswith(prefix)), path)
        if below == path and path.startswith("/"):
            raise ValueError("another folder")
        steps = [step for step in below.split("/") if step not in ("", ".")]
        if not steps or ".." in steps:
            raise ValueError("no file below the folder")
        return steps


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

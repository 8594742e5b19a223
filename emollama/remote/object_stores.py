"""Download of files from object stores such as S3, with fsspec and its package for the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from emollama.errors import DownloadError, FileAbsent, ServerFailure
from emollama.heartbeat import beat
from emollama.remote.transport import RESTART, Version, shown

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "hf": "huggingface_hub"}  # scheme -> package that fsspec needs for it
_CHUNK = 1 << 20  # bytes


class ObjectStores:
    """Downloads files with fsspec. Implements :class:`emollama.remote.transport.Transport`.

    Credentials, timeouts and attempts are those of the package for the store.
    """

    def version(self, url: str) -> Version:
        """Return the version of a file without reading it."""
        files, path = _file_system(url)
        # The properties of files must be those that the server states now.
        files.invalidate_cache()
        with _named_errors(url):
            return Version(files.ukey(path), None, files.info(path)["size"])

    def read(self, url: str, begin: int, size: int) -> tuple[bytes, Version]:
        """Return a part of a file. Its version is not known, because stores would need a second request for it."""
        # fsspec keeps file systems by process and thread, so that this one is not used in a forked process.
        files, path = _file_system(url)
        with _named_errors(url):
            content = bytes(files.cat_file(path, begin, begin + size))
        if len(content) != size:
            raise DownloadError(f"'{shown(url)}': the file ends before byte {begin + size:,}. {RESTART}")
        beat()
        return content, Version(None, None, None)

    def download(self, url: str, earlier: Version | None, file: BinaryIO) -> Version | None:
        """Write the content of a file to ``file``, and return its version; None if it still has the version ``earlier``."""
        version = self.version(url)
        if version == earlier:
            return None
        files, path = _file_system(url)
        with _named_errors(url):
            stream = files.open(path, "rb")
        logging.getLogger("emollama").info("downloading %s", shown(url))
        received = 0
        try:
            while chunk := _read(stream, url):
                # An error here is one of the local disk, not of the server.
                file.write(chunk)
                received += len(chunk)
                beat()
        finally:
            stream.close()
        if received != version.size:
            text = f"'{shown(url)}': the download ended after {received:,} of {version.size:,} bytes. Start again."
            raise ServerFailure(text)
        return version


def _read(stream: BinaryIO, url: str) -> bytes:
    with _named_errors(url):
        return stream.read(_CHUNK)


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path of the file there.

    Raises:
        DownloadError: If the URL is invalid, or the package for the store is missing.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme, "a package")
        text = (
            f"'{shown(url)}': {scheme}:// needs the package {package}, which cannot be imported ({error}): pip install {package}"
        )
        raise DownloadError(text) from None
    except ValueError as error:
        raise DownloadError(f"'{shown(url)}': {error}. Correct the URL.") from None
    return files, path


@contextmanager
def _named_errors(url: str) -> Iterator[None]:
    """Convert errors of a package for a store to :class:`DownloadError`."""
    try:
        yield
    except FileNotFoundError:
        raise FileAbsent(f"'{shown(url)}': there is no such file. Correct the URL, or upload the file.") from None
    except PermissionError as error:
        raise DownloadError(
            f"'{shown(url)}': the server refuses access ({error}). Correct the URL or your credentials."
        ) from None
    except Exception as error:  # each package has exceptions of its own
        reason = f"{type(error).__name__}: {error}".rstrip(". ").replace(url, shown(url))
        remedy = "Check the network, the server and your credentials, and start again."
        text = f"'{shown(url)}': the download failed ({reason}). {remedy}"
        raise ServerFailure(text, answered=not _is_unreachable(error)) from None


def _is_unreachable(error: Exception) -> bool:
    """Return whether no answer came, by the names of an exception's classes: each package has connection errors of its own."""
    return any(word in base.__name__ for base in type(error).__mro__ for word in ("Connect", "Timeout"))

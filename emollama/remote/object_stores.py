"""Download of files from object stores such as S3, with fsspec and its package for the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from emollama.errors import DownloadError, FileAbsent, ServerFailure
from emollama.remote.downloads import Version

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "hf": "huggingface_hub"}  # scheme -> package that fsspec needs for it


class ObjectStores:
    """Downloads files with fsspec. Implements :class:`emollama.remote.downloads.Transport`.

    Credentials, timeouts and attempts are those of the package for the store.
    """

    def exists(self, url: str) -> bool:
        """Return whether there is such a file, without reading it."""
        try:
            with _file(url) as (files, path):
                files.info(path)
        except FileAbsent:
            return False
        return True

    def download(self, url: str, earlier: Version | None, file: BinaryIO) -> Version | None:
        """Write the content of a file to ``file``, and return its version; None if it still has the version ``earlier``."""
        with _file(url) as (files, path):
            version = Version(files.ukey(path), None, files.info(path)["size"])
            if version == earlier:
                return None
            logging.getLogger("emollama").info("downloading %s", url)
            files.get_file(path, file.name)
            received = file.seek(0, 2)
        if received != version.size:
            text = f"'{url}': the download ended after {received:,} of {version.size:,} bytes. Start again."
            raise ServerFailure(text)
        return version


@contextmanager
def _file(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL and the path of the file there; errors become :class:`DownloadError`."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme, "a package")
        text = f"'{url}': {scheme}:// needs the package {package}, which cannot be imported ({error}): pip install {package}"
        raise DownloadError(text) from None
    except ValueError as error:
        raise DownloadError(f"'{url}': {error}. Correct the URL.") from None
    try:
        # The properties of files must be those that the server states now.
        files.invalidate_cache()
        yield files, path
    except FileNotFoundError:
        raise FileAbsent(f"'{url}': there is no such file. Correct the URL, or upload the file.") from None
    except PermissionError as error:
        raise DownloadError(f"'{url}': the server refuses access ({error}). Correct the URL or your credentials.") from None
    except Exception as error:  # each package has exceptions of its own
        reason = f"{type(error).__name__}: {error}".rstrip(". ")
        remedy = "Check the network, the server and your credentials, and start again."
        raise ServerFailure(f"'{url}': the download failed ({reason}). {remedy}", answered=False) from None

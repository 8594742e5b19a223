"""The protocol by which files are read from servers, and what a server says about the content of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Protocol

# What to do about a file that changes while its parts are being read.
RESTART = "It was replaced after it was indexed or after the run started. Restore it, or index it again and start a new run."


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

    def version(self, url: str) -> Version:
        """Return the version of a file without reading it.

        Raises:
            FileAbsent, ServerFailure, DownloadError: As for :meth:`download`.
        """
        ...

    def read(self, url: str, begin: int, size: int) -> tuple[bytes, Version]:
        """Return a part of a file, and the version of the file as far as the server states it with the part.

        Args:
            url: the file.
            begin: position of the first byte.
            size: number of bytes.

        Raises:
            FileAbsent, ServerFailure, DownloadError: As for :meth:`download`, and if the file ends before the part does.
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


def shown(url: str) -> str:
    """Return a URL for messages and files: without its query, which may contain a signature that grants access."""
    return url.partition("?")[0]

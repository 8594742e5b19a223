"""Reading of the members of a tar in order, without extracting any of them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from emollama.errors import UserError

LARGEST_RECORD = 2**16  # bytes; tars are written in records of 10 KiB, unless GNU tar has the option --blocking-factor


@contextmanager
def open_complete_tar(local: str, shown: str) -> Iterator[tuple[Iterator[tarfile.TarInfo], IO[bytes]]]:
    """Open an uncompressed tar for its members and its bytes; after the body has read all members, check the end of the tar.

    Args:
        local: path of the tar on this machine.
        shown: name of the tar in messages.

    Raises:
        UserError: If the file is not a tar, is truncated, or cannot be read.
    """
    count = 0

    def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        nonlocal count
        while (member := tar.next()) is not None:
            # tarfile collects all members in memory.
            tar.members.clear()  # type: ignore[attr-defined]
            count += 1
            yield member

    try:
        with tarfile.open(local, "r:") as tar, open(local, "rb") as file:
            yield members(tar), file
            file.seek(tar.offset)
            # Programs fill the last record with zeros. More zeros are those of a copy that was interrupted, and other bytes are
            # those of a tar that was appended with cat.
            end = file.read(LARGEST_RECORD + 1)
            if len(end) < tarfile.BLOCKSIZE or len(end) > LARGEST_RECORD or any(end):
                raise UserError(f"{shown}: truncated or damaged after {count} members: no end mark. Write the shard again.")
    except UserError:
        raise
    # ValueError: impossible numbers in a header.
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{shown}: not a complete, uncompressed tar: {error}. Write it again, or decompress it.") from None


def unsafe_member(member: tarfile.TarInfo) -> str | None:
    """Return what is wrong with a member whose path leads out of its folder, or that is neither a file nor a folder; or None."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "has a path that leads out of its folder"
    if not member.isdir() and (not member.isfile() or member.issparse()):
        return "is a link, a device or another special file"
    return None

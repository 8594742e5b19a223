"""``SHA256SUMS``: the digests of the .npy files in a folder, in the format of the program ``sha256sum``.

An extraction appends a line for each array that it writes, so the digests of an extraction that was killed remain. Several
processes may append at the same time. If a name occurs twice, the later line counts, and lines that a killed process left
incomplete are ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from emollama.errors import UserError
from emollama.paths import atomic_write

FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)\.npy")


def append(folder: Path, name: str, content: bytes | memoryview) -> None:
    """Record the digest of an array.

    Args:
        folder: the folder of the arrays. It is created if it does not exist.
        name: name of the clip.
        content: the bytes of its .npy file.

    Raises:
        OSError: If the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = _line(name, hashlib.sha256(content).hexdigest())
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # The last line is incomplete.
            line = b"\n" + line
        # A line is written at once, so that lines of several processes are not mixed. On a full disk, only its begin is written;
        # writing the rest raises the error.
        while line:
            line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def read(folder: Path) -> dict[str, str]:
    """Return clip name -> hexadecimal SHA-256 of its .npy file; empty if there are no digests.

    Raises:
        OSError: If the file cannot be read.
        UserError: If it contains no digest at all.
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return {}
    matches = (_LINE.fullmatch(line) for line in text.split("\n"))
    digests = {match[2]: match[1].lower() for match in matches if match}
    if text.strip() and not digests:
        raise UserError(f"{folder / FILE} is damaged: it contains no digest of a .npy file. Restore it, or delete it.")
    return digests


def tidy(folder: Path, names: Collection[str]) -> None:
    """Sort the digests and remove those of other clips and repeated ones, if the folder has digests.

    Raises:
        OSError: If the file cannot be written.
    """
    if not (folder / FILE).exists():
        return
    lines = [_line(name, digest) for name, digest in sorted(read(folder).items()) if name in names]
    with atomic_write(folder / FILE, "wb") as file:
        file.writelines(lines)


def _line(name: str, digest: str) -> bytes:
    return f"{digest}  {name}.npy\n".encode("utf-8", "surrogateescape")

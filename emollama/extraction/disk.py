"""Disk errors of an extraction as user errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emollama.disk import is_full, remedy
from emollama.errors import UserError


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of this block, which writes a file or into a folder, into a user error.

    Args:
        path: the file or folder, for messages.

    Raises:
        UserError: If an OSError occurred. After the disk was full, the same command continues the extraction.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            text = f"{path}: the disk is full ({error.strerror}). Finished arrays remain, and no file is incomplete."
        else:
            text = f"{path}: cannot write: {error.strerror or error}."
        raise UserError(f"{text} {remedy(error)} Then run the same command again.") from None

"""Conversion of errors of memory and of the file system to user errors, where nothing else has named the key or the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emollama import disk, memory


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Convert errors of this block that the user can correct. Other exceptions are raised unchanged.

    Raises:
        UserError: If memory is exhausted, or the file system reported an error that the user can correct.
    """
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        problem = memory.user_error(error) or (disk.user_error(error) if isinstance(error, OSError) else None)
        if problem is None:
            raise
        raise problem from error

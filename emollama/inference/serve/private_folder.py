"""A private folder for all temporary files of a server, which is deleted at its end, or by the next server after a crash.

A server holds a lock on its folder (``flock``), which the system releases when the process ends in any way. A server that starts
deletes the folders of this user that no process has locked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "emollama-serve-"


@contextmanager
def private_temporary_folder() -> Iterator[int]:
    """In this context, ``tempfile`` creates all files of this process in a new folder that only this user can read.

    Yields the number of folders of crashed servers that were deleted.

    Raises:
        OSError: If the folder cannot be created.
    """
    before, parent = tempfile.tempdir, Path(tempfile.gettempdir())
    deleted = sum(_delete_if_abandoned(path) for path in parent.glob(f"{PREFIX}*"))
    folder, lock = _locked_folder(parent)
    tempfile.tempdir = str(folder)
    try:
        yield deleted
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Create a folder; return it and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if (lock := _lock(folder)) is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """Lock a folder and return the descriptor; None if another process has locked it, or has deleted it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A server that started between the creation and the lock may have deleted the folder.
        if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _delete_if_abandoned(folder: Path) -> bool:
    """Delete the folder of a server that has ended without deleting it; return whether it did."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    # The system's folder for temporary files is shared: another user may have created this name.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    if (lock := _lock(folder)) is None:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return True

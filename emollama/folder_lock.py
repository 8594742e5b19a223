"""Locks of folders, so that two runs never write into the same one.

A lock is a POSIX record lock (``fcntl.lockf``) on the file ``.lock`` in the folder. The system releases it when its process ends
in any way, child processes do not inherit it, and NFS shares it between machines, unless it is mounted with ``nolock`` or
``local_lock``. The file names the holder for messages only.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.paths import require_writable

NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)  # errors of a lock that another process holds
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # errors of file systems without locks
# A process cannot exclude itself with this kind of lock, and closing any descriptor of the file would release it. A later lock
# of this process therefore replaces an earlier one that was not released.
_OWN: dict[Path, int] = {}


class FolderLock:
    """A lock that this process holds on a folder until :meth:`release`, the end of a ``with`` block, or the end of the process.

    Args:
        folder: the folder, which is created if it does not exist. It must be writable (:func:`~emollama.paths.require_writable`).
        key: the option or configuration key that contains the folder, for messages.
        created: folders that were created for this lock already and that :meth:`release` removes if they are empty.

    Attributes:
        previous: the description of a process that ended without releasing the lock; "" if there is none.
        supported: False if the file system has no locks. Nothing protects the folder then.

    Raises:
        UserError: If another process holds the lock, or the file cannot be locked.
    """

    def __init__(self, folder: Path, key: str, created: Sequence[Path] = ()) -> None:
        self.folder, self.previous, self.supported = folder.absolute(), "", True
        self._path = self.folder / NAME
        self._created = [*create_folders(self.folder), *created]
        self._release_own()
        try:
            self._descriptor = self._acquire(key)
        except BaseException:
            remove_if_empty(self._created)
            raise
        _OWN[self._path] = self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock, and remove the folder if this lock created it and it is empty."""
        if _OWN.get(self._path) == self._descriptor:
            # The file is removed while the lock is held, so that no other process holds a lock on it. If somebody has deleted it
            # before, the file is that of another process.
            if _is_same_file(self._descriptor, self._path):
                self._path.unlink(missing_ok=True)
            self._release_own()
            remove_if_empty(self._created)

    def _release_own(self) -> None:
        if (descriptor := _OWN.pop(self._path, None)) is not None:
            os.close(descriptor)

    def _acquire(self, key: str) -> int:
        """Lock the file, write this process into it, and return its descriptor."""
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            except FileNotFoundError:
                # Another process has created the folder, failed, and removed it again.
                self._created = [*create_folders(self.folder), *self._created]
                continue
            except OSError as error:
                raise UserError(f"{key}: cannot write '{self._path}': {error.strerror}. {remedy(error)}") from None
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise UserError(f"{key}: '{self._path}' is not a regular file. Delete it.")
                self._lock(descriptor, key)
                # Between the two calls, the previous holder may have removed the file.
                if _is_same_file(descriptor, self._path):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        self.previous = _holder(descriptor)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        # Without space on the disk, messages cannot name the holder, but the lock works.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        return descriptor

    def _lock(self, descriptor: int, key: str) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                self.supported = False
            elif error.errno in HELD:
                holder = _holder(descriptor) or "another process"
                raise UserError(
                    f"{key}: '{self.folder}' is in use: {holder} is writing to it. Wait until that process ends, or set another"
                    f" {key}."
                ) from None
            else:
                raise UserError(f"{key}: cannot lock '{self._path}': {error.strerror}. Specify another folder.") from None


@contextmanager
def released_after_error(lock: AbstractContextManager[Any]) -> Iterator[None]:
    """Release a lock only if an exception leaves this context."""
    with ExitStack() as stack:
        stack.enter_context(lock)
        yield
        stack.pop_all()


def new_run_folder(output_dir: str) -> tuple[str, list[Path]]:
    """Create a folder that no other run uses, named after the time (with a suffix if that name is taken).

    Returns:
        The folder's name, and the folders that were created (:func:`create_folders`).

    Raises:
        UserError: If it cannot be created.
    """
    require_writable(Path(output_dir), "run.output_dir")
    above = create_folders(Path(output_dir))
    time = datetime.now().strftime("%Y%m%d%H%M%S")
    for name in itertools.chain([time], (f"{time}_{number}" for number in itertools.count(2))):
        folder = Path(output_dir, name)
        with suppress(FileExistsError):
            folder.mkdir()
            return name, [folder, *above]
    raise AssertionError("unreachable")


def create_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents where they do not exist, and return those that were created, the deepest first."""
    created: list[Path] = []
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            with suppress(FileExistsError):
                path.mkdir()
                created.insert(0, path)
    return created


def remove_if_empty(folders: list[Path]) -> None:
    """Remove folders, the deepest first, up to the first one that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _holder(descriptor: int) -> str:
    """Return a description of the process that wrote a lock file; "" if the file is empty or damaged."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {content['pid']} on {content['host']} (since {content['since']})"
    except (ValueError, KeyError, TypeError):
        return ""


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

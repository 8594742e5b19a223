"""Errors of the file system: what the system says, how the user can correct it, and user errors with both."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emollama.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
# Number of an error -> what corrects it. Other errors, such as that of a read-only file system, need another file or folder.
REMEDIES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space, because your quota is used up",
    errno.EACCES: "correct the permissions",
    errno.EPERM: "correct the permissions",
    errno.EFBIG: "raise the limit for the size of a file (ulimit -f)",
    errno.EMFILE: "raise the limit for open files (ulimit -n)",
    errno.EISDIR: "move this folder away",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network disk",
}
# Errors that a user can correct. Others, such as that of a missing file, may be mistakes of the program.
CORRECTABLE = {*REMEDIES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENFILE, errno.ENODEV, errno.ENXIO}


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the system that caused an exception, or None.

    Not every library raises it: torch raises another error while it handles that of the system, and libraries in Rust only
    mention its number in their message.
    """
    for current in causes(error):
        if isinstance(current, OSError):
            return current
        if number := re.search(r"\(os error (\d+)\)", str(current)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that caused it, or during whose handling it was raised."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def reason(error: BaseException) -> str:
    """Return the system's description of an error, such as ``No space left on device``, or the first line of its message."""
    cause = system_error(error)
    return (cause and cause.strerror) or str(error).strip().partition("\n")[0].rstrip(". ") or type(error).__name__


def is_full(error: BaseException) -> bool:
    """Return whether a file could not be written because the disk is full or a quota is used up."""
    cause = system_error(error)
    return cause is not None and cause.errno in FULL


def remedy(error: BaseException, alternative: str = "") -> str:
    """Return a sentence that says how to correct an error of the file system.

    Args:
        error: the error, or an exception that it caused. Its number is unknown if a library has discarded it.
        alternative: what also helps, such as ``specify another folder``.
    """
    cause = system_error(error)
    own = REMEDIES.get(cause.errno) if cause and cause.errno else "check the free disk space and the permissions"
    ways = [way for way in (own, alternative) if way]
    text = ", or ".join(ways) or "use another path"
    return f"{text[0].upper()}{text[1:]}."


def user_error(error: OSError) -> UserError | None:
    """Return the user error for an error of the file system that the user can correct; None for others.

    It is a safety net: where the configuration key or option is known, a message names it, too.
    """
    if error.errno not in CORRECTABLE or error.filename is None:
        return None
    return UserError(f"{os.fsdecode(error.filename)}: {error.strerror}. {remedy(error)}")


@contextmanager
def with_path(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the path to the OSErrors of this block, because errors of writing to an open file do not contain it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and not isinstance(error, BrokenPipeError):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def require_readable(path: str, key: str) -> None:
    """Check that an existing local file can be opened.

    Raises:
        UserError: If it cannot, for example because of its permissions. The message names the configuration key.
    """
    if "://" in path:
        return
    try:
        # A named pipe without a writer must not block.
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        raise unreadable(path, key, error) from None


def require_accessible(path: str, key: str) -> None:
    """Check that permissions do not hide a path, which may not exist.

    Raises:
        UserError: If they do. The message names the configuration key.
    """
    try:
        os.stat(path)
    except PermissionError as error:
        raise unreadable(path, key, error) from None
    except OSError:
        return


def unreadable(path: str | os.PathLike[str], key: str, error: OSError) -> UserError:
    """Return the error for a file or folder that exists and cannot be read; ``key`` is the configuration key that names it."""
    return UserError(f"{key}: cannot read '{os.fspath(path)}': {error.strerror or error}. {remedy(error)}")


def require_no_folder(*paths: Path) -> None:
    """Check that no folder has the name of a file that will be read or written.

    Raises:
        UserError: If a path is a folder.
    """
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: this folder has the name of a file that the command reads or writes. Move it away.")


def usage(path: str | Path) -> shutil._ntuple_diskusage:
    """Return the size and free space in bytes of the disk of a path, which may not exist yet."""
    folder = Path(path).absolute()
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir()))

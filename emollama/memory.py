"""The free memory of this machine, and errors of memory that is exhausted: that of a GPU, of this machine, or of /dev/shm."""

from __future__ import annotations

import errno
from pathlib import Path

from emollama.errors import RemoteCrash, UserError

GIB = 2**30
# Texts in the RuntimeErrors of torch, and of the libraries that it calls, for memory that cannot be allocated.
_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory of the GPU or of this machine could not be allocated."""
    # torch is not imported here; its OutOfMemoryError is a RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, without the place in the source code of torch."""
    line = str(error).strip().partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2]
    return line.rstrip(". ") or type(error).__name__


def user_error(error: BaseException) -> UserError | None:
    """Return the user error for memory that is exhausted; None for any other exception.

    It is a safety net: training and evaluation name the samples, too.
    """
    if isinstance(error, RemoteCrash) or not is_out_of_memory(error):
        return None
    return UserError(
        f"out of memory: {first_line(error)}. 'emollama plan' estimates the memory that a configuration needs. Use fewer"
        " processes on this machine, a smaller batch_size, or a machine with more memory."
    )


def machine_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return the available and all bytes of this machine's memory, or of the container's if that has less; 0, 0 if unknown.

    Args:
        root: the folder with ``proc`` and ``sys``.
    """
    try:
        sizes = sizes_of(root / "proc/meminfo")
        available, total = sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, KeyError):
        return 0, 0  # not Linux
    for group in _control_groups(root):
        try:
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text()) - _file_cache(group)
        except (OSError, ValueError):
            continue  # a group without a limit
        available, total = min(available, max(0, limit - used)), min(total, limit)
    return available, total


def sizes_of(path: Path) -> dict[str, int]:
    """Return name -> bytes from a file of the kernel with lines such as ``MemTotal: 1024 kB``."""
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    return {words[0].removesuffix(":"): 1024 * int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


def _control_groups(root: Path) -> list[Path]:
    """Return the folders of the control groups (version 2) of this process, whose limits all apply."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [top]
    own = next((top / line[3:].lstrip("/") for line in lines if line.startswith("0::")), top)
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]


def _file_cache(group: Path) -> int:
    """Return the bytes of cached files that the kernel frees if memory is needed."""
    lines = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return int(lines.get("inactive_file", 0))

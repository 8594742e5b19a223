"""Errors of memory that is exhausted: that of a GPU, of this machine, or of /dev/shm."""

from __future__ import annotations

import errno

from emollama.errors import RemoteCrash, UserError

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

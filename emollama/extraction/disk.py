"""Disk errors as user errors, and a lock against two extractions into one folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emollama.disk import is_full, remedy
from emollama.errors import UserError
from emollama.logs.logger import get_logger


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the output folder of an extraction. The operating system releases the lock even if the process is killed.

    Raises:
        UserError: If another extraction has locked the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        text = f"extraction.output: another extraction is writing into '{folder}'. Wait for it, or stop it."
        raise UserError(f"{text} To use several processes, start one extraction with --nproc or torchrun.") from None
    except OSError:
        get_logger().info("%s: this file system has no locks. Do not start a second extraction into this folder", folder)
    try:
        yield
    finally:
        os.close(descriptor)

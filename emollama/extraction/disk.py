"""Errors of the disk in words, and the lock that keeps two runs out of one folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emollama.errors import UserError
from emollama.logs.logger import get_logger

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Around what writes a file, or below a folder.

    Raises:
        UserError: in place of an OSError; after a full disk, rerun the same command to continue.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            text = f"{place}: the disk is full ({error.strerror}). What is done is kept, and nothing is half-written."
            raise UserError(f"{text} Free space and run the same command again.") from None
        raise UserError(f"{place}: cannot write: {error.strerror or error}. Mend it and run the same command again.") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Refuse to work beside another run in a folder; the lock ends with the process, however that ends.

    Raises:
        UserError: another one is at work.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        text = f"extraction.output: another extraction is writing into '{folder}'. Wait for it, or stop it"
        raise UserError(f"{text}; several processes share the work under torchrun.") from None
    except OSError:
        get_logger().info("%s: this file system has no locks; start no second extraction into it", folder)
    try:
        yield
    finally:
        os.close(descriptor)

"""Real small file systems without privileges: a tmpfs in namespaces of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest


@cache
def why_not() -> str:
    """Why this system does not allow them; "" if it does."""
    completed = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"], capture_output=True, text=True, check=False
    )
    return completed.stderr.strip() if completed.returncode else ""


def require() -> None:
    """Skip the test if this system does not allow them."""
    if why_not():
        pytest.skip(f"no mounts in a namespace: {why_not()}")


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A folder on a file system of this size, such as ``300k``. It is seen through the process that has mounted it."""
    require()
    script = f"mount -t tmpfs -o size={size} tmpfs /mnt && echo mounted && exec sleep 3600"
    process = subprocess.Popen(["unshare", "-rm", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "mounted\n"
        yield Path(f"/proc/{process.pid}/root/mnt")
    finally:
        process.kill()
        process.wait()

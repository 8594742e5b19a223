"""Runs a command with small file systems: ``python small_mounts.py FOLDER=SIZE ... -- -m emollama train ...``.

The mounts are in namespaces of this process, so that they need no privileges and end with it.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_SLAVE = 0x20000, 0x10000000, 0x4000, 0x80000
LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> None:
    """Call a function of the C library."""
    if getattr(LIBC, function)(*arguments):
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


def mount(*sizes: str) -> None:
    """Mount an empty tmpfs on each folder, given as ``FOLDER=SIZE``."""
    uid, gid = os.getuid(), os.getgid()
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    call("mount", b"none", b"/", None, MS_REC | MS_SLAVE, None)
    for size in sizes:
        folder, _, limit = size.partition("=")
        call("mount", b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={limit}".encode())


if __name__ == "__main__":
    end = sys.argv.index("--")
    mount(*sys.argv[1:end])
    sys.argv[:] = sys.argv[end + 1 :]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")

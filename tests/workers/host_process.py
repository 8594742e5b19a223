"""A launcher and its workers, on a host of tests/two_hosts.py, as forks: importing the libraries takes ten CPU seconds."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ranks

CLONE_NEWUTS, CLONE_NEWNET = 0x4000000, 0x40000000
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def run(host: str, arguments: list[str], variables: dict[str, str], cwd: str, folder: str) -> None:
    """Run ``python <arguments>``, a launcher whose workers are forks, too.

    Args:
        host: its network namespace, whose name the machine has for this process; "" for none.
        arguments: the command line.
        variables: the environment.
        cwd: current directory.
        folder: where the output is, in the files ``stdout`` and ``stderr``.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    if host:
        _enter(host)
    dynamic_rendezvous.get_method_name = _caller
    Forked.where = cwd, folder
    subprocess_handler.Popen = Forked  # type: ignore[misc]
    ranks._program(arguments, variables, cwd, folder)


def _caller(depth: int = 2) -> str:
    """The function of torch with this signature looks through all modules for each frame: 0.1 CPU s, twenty times in a run."""
    return sys._getframe(depth).f_code.co_name


def _enter(host: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", host).open() as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWUTS):
            raise OSError(ctypes.get_errno(), f"cannot enter {host}")
    socket.sethostname(host)


class Forked:
    """What torch elastic uses of ``subprocess.Popen``, for a fork of the launcher that runs its command line."""

    where: tuple[str, str]

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_: Any) -> None:
        self.args, self.returncode = args, None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become_a_worker()
                ranks._program([one for one in args[1:] if one != "-u"], env, *self.where)
            finally:
                os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None and (status := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(status[1])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (ranks.HANG if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or ranks.HANG)
            time.sleep(0.02)
        return code

    @staticmethod
    def _become_a_worker() -> None:
        """Undo what the launcher has changed, and release its connections: they stay open as long as any process has them."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        logging.disable(logging.NOTSET)
        sys.modules.pop("node_faults", None)  # the launcher has imported it without the variable RANK
        ranks.release_files({1, 2})

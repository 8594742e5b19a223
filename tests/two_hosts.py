"""Two hosts on this machine: network namespaces with a link between them, each with a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ranks import ROOT, SERVER, environment
from workers import host_process

PORT = 29400
MASTER = "10.66.0.1"


class Forked:
    """What tests use of ``subprocess.Popen``, for a process of the fork server."""

    def __init__(self, process: Any) -> None:
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)

    def wait(self) -> None:
        self._process.join()


@dataclass
class Host:
    """A network namespace.

    Attributes:
        name: name of the namespace.
        address: its address on the link.
        folder: the disk of this host.
        source: the folder with the package emollama.
    """

    name: str
    address: str
    folder: Path
    source: Path = ROOT
    started: list[subprocess.Popen[bytes] | Forked] = field(default_factory=list)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start ``python <arguments>`` on this host. Its output is in the file ``output`` of the folder."""
        line = ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh", sys.executable, *arguments]
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *line],
                cwd=self.source,
                env=environment() | {"PYTHONPATH": str(self.source)} | cache | variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def fork(self, *arguments: str, **variables: str) -> Forked:
        """Like :meth:`start`, in forks of the fork server, whose start takes a tenth of the CPU time.

        Variables that /proc shows are those of the server, so a launcher does not pass signals on to its workers.
        """
        for name in ("stdout", "stderr"):
            with suppress(FileExistsError):
                (self.folder / name).symlink_to("output")
        (self.folder / "output").touch()
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
        environ = environment() | {"PYTHONPATH": str(self.source)} | cache | variables
        line = list(arguments), environ, str(self.source), str(self.folder)
        process = Forked(SERVER.process(host_process.run, self.name, *line))
        self.started.append(process)
        return process

    def output(self) -> str:
        """What the processes have printed."""
        return (self.folder / "output").read_text()

    def set_link(self, state: str) -> None:
        """Connect (up) or cut (down) the link of this host."""
        _ip("-n", self.name, "link", "set", "eth1", state)

    def slow_down_link(self) -> None:
        """Limit the link to 50 Mbit/s, if the system can do so."""
        line = ["tc", "-n", self.name, "qdisc", "add", "dev", "eth1", "root", "tbf", "rate", "50mbit"]
        with suppress(FileNotFoundError):
            subprocess.run([*line, "burst", "64kb", "latency", "400ms"], capture_output=True, check=False)

    def listening(self) -> list[str]:
        """The addresses on which processes of this host accept TCP connections."""
        table = subprocess.run(
            ["ip", "netns", "exec", self.name, "cat", "/proc/net/tcp", "/proc/net/tcp6"],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split() for line in table.stdout.splitlines() if ":" in line.split()[0]]
        addresses = [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[1] != "local_address"]
        return [".".join(str(part) for part in reversed(bytes.fromhex(text))) if len(text) == 8 else text for text in addresses]

    def processes(self) -> list[int]:
        """The processes that run on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]


def train(config: Path, *options: str, nodes: str = "2", more: tuple[str, ...] = ()) -> list[str]:
    """The arguments of ``emollama train`` on each of two hosts."""
    meeting = ["--nnodes", nodes, "--rdzv", f"{MASTER}:{PORT}", "--interface", "eth1", "--nproc", "1", *more]
    return ["-m", "emollama", "train", *meeting, "--cfg-path", str(config), *(["--options", *options] if options else [])]


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts with a link; skips the test if this system does not allow namespaces."""
    hosts = []
    run = uuid.uuid4().hex[:6]
    try:
        for number, name in ((1, "a"), (2, "b")):
            host = Host(f"host-{name}-{run}", f"10.66.0.{number}", folder / name)
            host.folder.mkdir(parents=True)
            if reason := _fails("netns", "add", host.name):
                pytest.skip(f"no network namespaces: {reason}")
            hosts.append(host)
        one, other = hosts
        _ip("link", "add", "eth1", "netns", one.name, "type", "veth", "peer", "name", "eth1", "netns", other.name)
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth1")
            for interface in ("lo", "eth1"):
                _ip("-n", host.name, "link", "set", interface, "up")
        yield one, other
    finally:
        for host in hosts:
            for pid in host.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in host.started:
                process.wait()
            _ip("netns", "del", host.name)


def wait_until(condition, *hosts: Host, seconds: float = 500) -> None:
    """Wait for a condition; fail with the output of the hosts."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("\n".join(f"--- {host.name}:\n{host.output()}" for host in hosts))
        time.sleep(0.1)


def statuses(*processes: subprocess.Popen[bytes] | Forked, hosts: tuple[Host, ...], seconds: float = 500) -> list[int]:
    """Wait for the end of processes, and return their exit statuses."""
    wait_until(lambda: all(process.poll() is not None for process in processes), *hosts, seconds=seconds)
    return [process.returncode for process in processes]


def _fails(*arguments: str) -> str:
    try:
        completed = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "the program ip is not installed"
    return completed.stderr.strip() if completed.returncode else ""


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout

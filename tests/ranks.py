"""Processes that start in milliseconds: forked from a server that has torch, transformers and peft loaded.

A new interpreter needs about ten CPU seconds to import these libraries, a fork of the server none. There are two ways to use it:

* ``launch(...)`` (fixture) runs a script or ``-m module`` in one or several processes, as a shell or torchrun would: each
  process is new, has its own environment and exit status, and may be killed. The result is that of ``subprocess.run``.
* ``ranks(function, ...)`` (fixture) calls a function in two processes that share one process group (gloo) for the whole
  session, and returns the list of both results.

Plots are not rendered in these processes (tests/plots.py), and runs write no report: drawing it takes longer than training the
tiny model.
Tests of torchrun itself need the real program: ``running.command``.
"""

from __future__ import annotations

import gc
import importlib
import logging
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker, util
from pathlib import Path
from typing import Any

import plots

ROOT = Path(__file__).parent.parent
HANG = 600.0  # seconds after which a process is considered hung; a loaded machine takes far less
OWN_END = 2.0  # seconds in which the other processes can end with an error of their own after one has failed
GRACE = 30.0  # seconds between SIGTERM and SIGKILL, as in torchrun


def environment() -> dict[str, str]:
    """This process's environment, with one thread per library because batches are small."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "PYTHONPATH": str(ROOT)}


def fork_context() -> Any:
    """The ``fork`` context of multiprocessing, after a collection of garbage.

    A forked process would collect the parent's garbage, too. The destructor of a decoded video frame then waits forever for
    threads that exist only in the parent.
    """
    gc.collect()
    gc.freeze()  # a collection in the fork would otherwise visit, and thereby copy, the memory that both share
    return multiprocessing.get_context("fork")


class ForkServer:
    """A server that starts at its first use. :meth:`close` ends it and adds its CPU time to that of this process's children."""

    def __init__(self) -> None:
        self._context: Any = None
        self._processes: list[Any] = []

    def process(self, target: Callable[..., None], *args: Any) -> Any:
        """A started process that runs ``target(*args)``; the target must be importable, the arguments picklable."""
        self._start()
        process = self._context.Process(target=target, args=args)
        process.start()
        self._processes = [*(one for one in self._processes if one.exitcode is None), process]
        return process

    def fork(self) -> None:
        """Start the server as a fork of this process, which imports the libraries first; both then share one import.

        The process must not have run any test yet.
        """
        importlib.import_module("workers.preloaded")
        resource_tracker.ensure_running()
        before = util.spawnv_passfds
        util.spawnv_passfds = _fork_into
        try:
            self._start()
        finally:
            util.spawnv_passfds = before

    def _start(self) -> None:
        if self._context is None:
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(["workers.preloaded"])
            with _environ(environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}):
                forkserver.ensure_running()

    def close(self) -> None:
        """End the server and the remaining processes."""
        for process in self._processes:
            process.kill()
            process.join()
        if self._context is not None:
            forkserver._forkserver._stop()
            self._context = None


SERVER = ForkServer()


def _fork_into(path: bytes, args: list[str], passfds: list[int]) -> int:
    """Replace ``spawnv_passfds``: fork a process that runs the code of ``python -c code``; return its id."""
    if number := os.fork():
        return number
    try:
        _forget_pytest(set(passfds))
        exec(args[args.index("-c") + 1], {"__name__": "__main__"})
    finally:
        os._exit(1)


def _forget_pytest(passfds: set[int]) -> None:
    """In a fork, undo the changes of pytest to the process and release its open files, except for ``passfds``."""
    release_files(passfds)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_pytest")]
    logging.getLogger().handlers.clear()


def release_files(kept: set[int]) -> None:
    """In a fork, release the open files of the parent, except for the numbers ``kept``."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in {int(name) for name in os.listdir("/proc/self/fd")} - kept - {null}:
        with suppress(OSError):  # the listed folder itself, which is closed by now
            os.fstat(number)
            os.dup2(null, number)  # a closed number would be reused, and the old object might close it again


class Group:
    """The variables that torchrun gives to each of several processes.

    The rendezvous store is in this process and chooses its own port, so no other program can take the port in between.
    """

    def __init__(self, size: int) -> None:
        from torch.distributed import TCPStore

        self.size = size
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def variables(self, rank: int) -> dict[str, str]:
        """The variables of one rank."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }


# Commands


@dataclass
class Launched:
    """Processes that run a command, as a shell or torchrun would have started them."""

    arguments: list[str]
    processes: list[Any]
    folder: Path
    group: Group | None
    _failed: float | None = field(default=None)
    _terminated: bool = field(default=False)

    @property
    def pids(self) -> list[int]:
        """Process ids, in the order of ranks."""
        return [process.pid for process in self.processes]

    def poll(self) -> int | None:
        """The exit status once all processes have ended, else None. If one fails, the others are ended, as in torchrun.

        Unlike torchrun, it gives them time to end with an error of their own, so that a test does not depend on who is first.
        """
        codes = [process.exitcode for process in self.processes]
        if any(codes) and self._failed is None:
            self._failed = time.monotonic()
        since = 0.0 if self._failed is None else time.monotonic() - self._failed
        if since > OWN_END and not self._terminated:
            self._terminated = True
            self.send_signal(signal.SIGTERM)
        if since > GRACE:
            self.send_signal(signal.SIGKILL)
        if None in codes:
            return None
        return codes[0] if len(codes) == 1 else int(any(codes))

    def send_signal(self, number: int) -> None:
        """Send a signal to every running process."""
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def kill(self) -> None:
        """Kill every process and its children."""
        for process in self.processes:
            if process.exitcode is None:
                with suppress(ProcessLookupError):  # a process that has just started may not lead a group yet
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
        for process in self.processes:
            process.join()

    def kill_alone(self) -> None:
        """Kill the processes, but not their children."""
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, timeout: float = HANG) -> subprocess.CompletedProcess[str]:
        """Wait for all processes; return the exit status and their output."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            left = [process.sentinel for process in self.processes if process.exitcode is None]
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"{self.arguments} hangs:\n{self.stderr()}")
            connection.wait(left, timeout=1.0)
        code = self.poll()
        completed = subprocess.CompletedProcess(self.arguments, code, (self.folder / "stdout").read_text(), self.stderr())
        shutil.rmtree(self.folder)
        return completed

    def stderr(self) -> str:
        """The standard error of all processes so far."""
        return (self.folder / "stderr").read_text()


def start(*arguments: str, processes: int = 1, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Launched:
    """Start ``python <arguments>`` in new processes; see :func:`launch`."""
    folder = Path(tempfile.mkdtemp())
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    line = [str(argument) for argument in arguments]
    group = Group(processes) if processes > 1 else None
    started = []
    for rank in range(processes):
        variables = (environment() if env is None else env) | (group.variables(rank) if group else {})
        if group:
            (folder / str(rank)).mkdir()
            variables["TORCHELASTIC_ERROR_FILE"] = str(folder / str(rank) / "error.json")
        started.append(SERVER.process(_program, line, variables, str(cwd), str(folder)))
    return Launched(line, started, folder, group)


def launch(*arguments: str, processes: int = 1, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Any:
    """Run ``python <arguments>`` to the end in new processes; returns a ``subprocess.CompletedProcess``.

    Args:
        arguments: ``train.py --cfg-path ...`` or ``-m emollama eval ...``.
        processes: number of processes; several get the environment that torchrun sets.
            If one fails, the others end and the status is 1.
        cwd: current directory.
        env: all variables; default: this process's. Variables that libraries read at import have no effect.
    """
    return start(*arguments, processes=processes, cwd=cwd, env=env).wait()


def _program(arguments: list[str], variables: dict[str, str], cwd: str, folder: str, own_session: bool = True) -> None:
    """Run a command line in a fork, as the interpreter would."""
    if own_session:
        os.setsid()
    _as_a_process_of_its_own()
    for number, name in ((1, "stdout"), (2, "stderr")):
        opened = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # TMPDIR can differ from that of the fork server
    os.chdir(cwd)
    import plots

    from emollama.reporting import plotting

    is_module = arguments[0] == "-m"
    first = cwd if is_module else str(Path(cwd, arguments[0]).parent)
    own = [path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "tests"))]
    sys.path[:] = [first, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep)), *own]
    sys.argv[:] = arguments[is_module:]
    plotting.rendered = plots.white_pixel
    try:
        if is_module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def no_report(folder: Path) -> Path:
    """Replace ``emollama.reporting.report.write_report``: return the path without writing the report."""
    return Path(folder) / "result/report.html"


def _as_a_process_of_its_own() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the default, instead of the setting of the server's parent
    plots.plots(plots.white_pixel).__enter__()
    from emollama.reporting import report

    report.write_report = no_report


# Functions


class Ranks:
    """Two processes in one group. They start at the first call and restart after a failed call."""

    SIZE = 2

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._ends: list[connection.Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(*args)`` in every process; returns all results, in the order of ranks.

        Args:
            function: of an importable module. The process group exists already: ``process_group.start`` returns it.
            args: picklable, as is the result.

        Raises:
            AssertionError: with the traceback of each process that failed.
        """
        if not self._processes:
            self._start()
        for end in self._ends:
            end.send((function, args, dict(os.environ), os.getcwd()))
        results, failures = [None] * self.SIZE, {}
        waiting = dict(enumerate(self._ends))
        # If one process fails, the other may wait for it: give it some time to fail by itself.
        until = time.monotonic() + HANG
        while waiting and time.monotonic() < until:
            for end in connection.wait(list(waiting.values()), timeout=1.0):
                rank = self._ends.index(end)
                del waiting[rank]
                try:
                    results[rank], failure = end.recv()
                except EOFError:
                    failure = "ended by itself"
                if failure:
                    failures[rank] = failure
                    until = min(until, time.monotonic() + GRACE)
        failures |= dict.fromkeys(waiting, "does not answer")
        if failures:
            self.close()
            raise AssertionError("\n".join(f"rank {rank}: {failure}" for rank, failure in sorted(failures.items())))
        return results

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._ends = [], []

    def _start(self) -> None:
        self._group = Group(self.SIZE)
        for rank in range(self.SIZE):
            own, other = multiprocessing.Pipe()
            self._processes.append(SERVER.process(_serve, other, self._group.variables(rank)))
            self._ends.append(own)
            other.close()


def _serve(end: connection.Connection, variables: dict[str, str]) -> None:
    """Run in a fork: join the group, then call the requested functions until the other end is closed."""
    os.environ.update(variables)
    _as_a_process_of_its_own()
    from emollama.distributed import process_group

    process_group.start("cpu")
    while True:
        try:
            function, args, environ, cwd = end.recv()
        except EOFError:
            os._exit(0)
        os.environ.clear()
        os.environ.update(environ | variables)
        os.chdir(cwd)
        try:
            answer = function(*args), None
        except BaseException:
            answer = None, traceback.format_exc()
        end.send(answer)


class _environ:
    """Change this process's environment inside ``with``."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = variables

    def __enter__(self) -> None:
        self.before = dict(os.environ)
        os.environ.update(self.variables)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self.before)

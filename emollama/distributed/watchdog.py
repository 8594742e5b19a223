"""A thread that ends a process which hangs: if no process of the run makes progress for some time, it prints all stacks.

It also ends the process if another node gives no sign of life. Nothing else notices an interrupted network, because a connection
on which nobody sends anything stays open.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from emollama.distributed.worker_errors import should_print, write_error
from emollama.distributed.worker_variables import attempt, integer
from emollama.errors import Unreachable, UserError
from emollama.heartbeat import all_joined, beats

T = TypeVar("T")
POLL_SECONDS = 10.0  # largest time between two looks at the progress
MARGIN_SECONDS = 60.0  # after the limit, until the interpreter's own timer ends a process whose threads cannot run
LOST_SHARE = 1 / 6  # of the limit, after which a node without a sign of life is lost
LARGE_READ = 2**26  # bytes; reading so much is progress, unlike the swapping of a process that waits


@contextmanager
def watching(minutes: float | None) -> Iterator[None]:
    """Watch this process in this context.

    Args:
        minutes: time without progress in any process of the run after which this process ends; None watches nothing.
    """
    if minutes is None:
        yield
        return
    end = threading.Event()
    watchdog = _Watchdog(60 * minutes, end)
    thread = threading.Thread(target=watchdog.run, name="emollama: watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(1.0)
        watchdog.leave()
        faulthandler.cancel_dump_traceback_later()


class _Watchdog:
    """The progress of all processes: the sum of their heartbeats and large reads, in the store of the process group.

    A process that waits for another one makes no progress itself, but does not hang as long as the other one does.
    """

    def __init__(self, limit: float, end: threading.Event) -> None:
        self._limit, self._end = limit, end
        self._poll = min(POLL_SECONDS, limit / 10)
        self._store: Any = None
        self._unreachable = False  # the store, since the last look
        self._node = os.environ.get("GROUP_RANK", "0")
        self._nodes = integer("GROUP_WORLD_SIZE", 1)
        self._signs: dict[str, int] = {}  # other node -> its signs of life
        self._silent: dict[str, float] = {}  # other node -> seconds since its last sign of life
        self._hosts: dict[str, str] = {}
        self._published = beats() + _bytes_read() // LARGE_READ
        self._total = 0

    def run(self) -> None:
        """Look at the progress until the context ends."""
        self._arm_interpreter_timer()
        progress, idle, last = self._progress(), 0.0, time.monotonic()
        while not self._end.wait(self._poll):
            now = time.monotonic()
            # If it took longer, this process was suspended in between.
            passed, last = min(now - last, 2 * self._poll), now
            idle += passed
            self._unreachable = False
            current = self._progress()
            if current != progress:
                progress, idle = current, 0.0
            self._arm_interpreter_timer()
            if lost := self._lost_nodes(passed):
                self._end_process(self._lost_error(lost), is_hanging=False)
            if idle >= self._limit or self._announced():
                self._end_process(self._hang_error(), is_hanging=True)

    def _arm_interpreter_timer(self) -> None:
        """Let the interpreter end this process if a library blocks all of its threads, including this one."""
        with suppress(Exception):  # standard error can be replaced by an object without a file descriptor
            faulthandler.dump_traceback_later(
                self._limit + min(MARGIN_SECONDS, self._limit), exit=True, file=sys.__stderr__ or sys.stderr
            )

    def _progress(self) -> tuple[int, int]:
        """Return the progress of this process and the sum of that of all processes."""
        own = beats() + _bytes_read() // LARGE_READ
        total = self._count("heartbeats", own - self._published)
        if total is not None:
            # Without a connection, the last sum counts.
            self._published, self._total = own, total
        return own, self._total

    def _announced(self) -> bool:
        """Return whether another process found that the run hangs."""
        return bool(self._count("hanging processes", 0))

    def _lost_nodes(self, passed: float) -> list[str]:
        """Give a sign of life of this node, and return the nodes that have given none for too long.

        Args:
            passed: seconds since the last call.
        """
        for node in map(str, range(self._nodes) if self._nodes > 1 else ()):
            signs = self._count(f"signs of life of node {node}", int(node == self._node))
            if node == self._node:
                continue
            if signs is not None and signs != self._signs.get(node, 0):
                self._signs[node], self._silent[node] = signs, 0.0
            elif node in self._signs or all_joined():
                self._silent[node] = self._silent.get(node, 0.0) + passed
        silent = [node for node, seconds in self._silent.items() if seconds >= LOST_SHARE * self._limit]
        if self._unreachable:  # nothing is known about the others without the store, which is on the node of rank 0
            return [node for node in silent if node == "0"]
        return [node for node in silent if not self._count(f"ended processes of node {node}", 0)]

    def leave(self) -> None:
        """Tell the other nodes that this process ends, so that they do not miss its node."""
        if self._store is not None and self._nodes > 1:
            self._count(f"ended processes of node {self._node}", 1)

    def _count(self, counter: str, more: int) -> int | None:
        """Add to a counter that all processes share; return None for a single process and without a connection."""
        if self._unreachable:
            return None
        seconds = max(1.0, self._poll)

        def add() -> int | None:
            if self._store is None:
                self._store = _connect(seconds)
                self._hosts = self._hosts or _hosts(self._store)
            return None if self._store is None else int(self._store.add(f"watchdog: {counter}", more))

        try:
            return _within(seconds, add)
        except Exception:  # the process with the store has ended, or the network fails
            self._store, self._unreachable = None, True
            return None

    def _lost_error(self, nodes: list[str]) -> Unreachable:
        names = " and ".join(f"node {node} ({self._hosts.get(node, 'unknown host')})" for node in nodes)
        return Unreachable(
            f"{names} did not respond for {self._limit * LOST_SHARE / 60:g} minutes (a sixth of run.hang_minutes). The"
            " machine or its network has failed. Resume the run with run.resume_ckpt_path=auto."
        )

    def _hang_error(self) -> UserError:
        minutes = self._limit / 60
        return UserError(
            f"no process of this run made progress for {minutes:g} minutes (run.hang_minutes), so it was ended. The stacks"
            " of all threads are above: the last line of a main thread shows what it waited for. If that was legitimate work,"
            " increase run.hang_minutes."
        )

    def _end_process(self, error: UserError, *, is_hanging: bool) -> None:
        rank, size = integer("RANK", 0), integer("WORLD_SIZE", 1)
        who = f"process {rank} of {size}: " if size > 1 else ""
        if is_hanging:
            with suppress(Exception):
                sys.stderr.write(f"{who}no progress for {self._limit / 60:g} minutes; the stacks of all threads:\n")
                sys.stderr.flush()
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
            self._count("hanging processes", 1)
            # The launcher ends the other processes when this one has ended, but they must show their stacks, too.
            time.sleep(2 * self._poll if size > 1 else 0)
        write_error(error)
        if should_print(error):
            with suppress(Exception):
                sys.stderr.write(f"error: {error}\n")
                sys.stderr.flush()
        os._exit(1)


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Return the result of a function, or raise its exception.

    Raises:
        TimeoutError: If it takes longer: a call of the store never returns if the network is cut while it waits for the answer.
    """
    outcome: Future[T] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:
            outcome.set_exception(error)

    # Not an executor, whose threads the interpreter waits for at its end.
    threading.Thread(target=call, name="emollama: store", daemon=True).start()
    return outcome.result(seconds)


def _bytes_read() -> int:
    """Return the number of bytes that this process has read from disks, which is its progress while it loads large weights."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.partition(":")[2])
    return 0


def _connect(seconds: float) -> Any:
    """Return a connection of its own to the store of the process group, or None if there is no group yet."""
    dist = sys.modules.get("torch.distributed")
    if integer("WORLD_SIZE", 1) == 1 or dist is None or not dist.is_initialized():
        return None
    address, port = os.environ["MASTER_ADDR"], integer("MASTER_PORT", 0)
    timeout = timedelta(seconds=seconds)
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    return dist.PrefixStore(attempt(), store)


def _hosts(store: Any) -> dict[str, str]:
    """Return node -> name of its machine, from the descriptions of :func:`~emollama.distributed.nodes.meet`."""
    keys = [f"process {rank}" for rank in range(integer("WORLD_SIZE", 1))]
    if store is None or not store.check(keys):
        return {}
    members = [json.loads(text) for text in store.multi_get(keys)]
    return {member["group"]: member["host"] for member in members}

"""A thread that ends a process which hangs: if no process of the run makes progress for some time, it prints all stacks."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from emollama.distributed.worker_errors import should_print, write_error
from emollama.distributed.worker_variables import attempt, integer
from emollama.errors import UserError
from emollama.heartbeat import beats

POLL_SECONDS = 10.0  # largest time between two looks at the progress
MARGIN_SECONDS = 60.0  # after the limit, until the interpreter's own timer ends a process whose threads cannot run
CONNECT_SECONDS = 30.0
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
        faulthandler.cancel_dump_traceback_later()


class _Watchdog:
    """The progress of all processes: the sum of their heartbeats and large reads, in the store of the process group.

    A process that waits for another one makes no progress itself, but does not hang as long as the other one does.
    """

    def __init__(self, limit: float, end: threading.Event) -> None:
        self._limit, self._end = limit, end
        self._poll = min(POLL_SECONDS, limit / 10)
        self._store: Any = None
        self._published = beats() + _bytes_read() // LARGE_READ
        self._total = 0

    def run(self) -> None:
        """Look at the progress until the context ends."""
        self._arm_interpreter_timer()
        progress, idle, last = self._progress(), 0.0, time.monotonic()
        while not self._end.wait(self._poll):
            now = time.monotonic()
            # If it took longer, this process was suspended in between.
            idle, last = idle + min(now - last, 2 * self._poll), now
            current = self._progress()
            if current != progress:
                progress, idle = current, 0.0
            self._arm_interpreter_timer()
            if idle >= self._limit or self._announced():
                self._end_process()

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

    def _count(self, counter: str, more: int) -> int | None:
        """Add to a counter that all processes share; return None for a single process and without a connection."""
        try:
            if self._store is None:
                self._store = _connect()
            return None if self._store is None else int(self._store.add(f"watchdog: {counter}", more))
        except Exception:  # the process with the store has ended, or the network fails
            self._store = None
            return None

    def _end_process(self) -> None:
        rank, size = integer("RANK", 0), integer("WORLD_SIZE", 1)
        who = f"process {rank} of {size}: " if size > 1 else ""
        minutes = self._limit / 60
        error = UserError(
            f"no process of this run made progress for {minutes:g} minutes (run.hang_minutes), so it was ended. The stacks of"
            " all threads are above: the last line of a main thread shows what it waited for. If that was legitimate work,"
            " increase run.hang_minutes."
        )
        with suppress(Exception):
            sys.stderr.write(f"{who}no progress for {minutes:g} minutes; the stacks of all threads:\n")
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


def _bytes_read() -> int:
    """Return the number of bytes that this process has read from disks, which is its progress while it loads large weights."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.partition(":")[2])
    return 0


def _connect() -> Any:
    """Return a connection of its own to the store of the process group, or None if there is no group yet."""
    dist = sys.modules.get("torch.distributed")
    if integer("WORLD_SIZE", 1) == 1 or dist is None or not dist.is_initialized():
        return None
    address, port = os.environ["MASTER_ADDR"], integer("MASTER_PORT", 0)
    timeout = timedelta(seconds=CONNECT_SECONDS)
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    return dist.PrefixStore(attempt(), store)

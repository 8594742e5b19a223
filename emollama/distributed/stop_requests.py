"""Requests to stop a run: the signals SIGTERM and SIGUSR1, which batch systems send before they end a job, and a time limit.

While a run is prepared, a request raises :class:`Stopped` at once, because there is nothing to save. During training and
evaluation it is deferred: the run looks at :attr:`StopRequests.reason` after each step and each batch. A second signal ends the
process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from emollama.distributed.worker_variables import is_worker
from emollama.errors import Stopped
from emollama.variables import STOP_AT

if TYPE_CHECKING:
    from emollama.distributed.process_group import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Batch systems send a signal to all processes of a job, and launchers pass the one that they get on to their workers. Signals
# that reach a process within this number of seconds are the same request.
SAME_REQUEST_SECONDS = 3.0


class StopRequests:
    """The requests to stop this process."""

    def __init__(self) -> None:
        self._reason = ""
        self._deferred = False
        self._handling = self._interrupted = self._ends = False
        self._processes = self._own_signals = 0

    @property
    def reason(self) -> str:
        """The name of the signal, or of the key with the time limit, that asks this process to stop; "" if nothing does.

        Raises:
            KeyboardInterrupt: If the user has pressed Ctrl-C. Python ignores the exception of its handler if the handler runs in
                a callback, such as the finalizer of an object.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        return self._reason

    def agreed_reason(self, world: World) -> str:
        """Return why the run stops, in words, if any process was asked to stop. Every rank calls it."""
        return f"stopped by {next(filter(None, world.gather(self.reason)))}"

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals in this context. It does nothing outside the main thread, which Python's handlers need.

        Raises:
            Stopped: If this process gets a signal in this context, outside :meth:`deferred`.
        """
        self._reason = ""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.signal(number, self._handle) for number in SIGNALS}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        self._handling = True
        # Python runs its handlers in the main thread, which can be blocked in a library. A thread sees the signals at once.
        received, sent = os.pipe()
        os.set_blocking(sent, False)
        wakeup = signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
        threading.Thread(target=self._end_at_second_signal, args=(received,), name="emollama: signals", daemon=True).start()
        try:
            yield
        finally:
            self._handling = False
            signal.set_wakeup_fd(wakeup)
            os.close(sent)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._reason, self._interrupted, self._ends = "", False, False

    @contextmanager
    def limited(self, minutes: float | None) -> Iterator[None]:
        """Request a stop when a time has passed in this context, inside :meth:`handled`.

        Args:
            minutes: the time limit, or None. It counts from now on, or from the start of the launcher of this package.
        """
        end = float(os.environ.get(STOP_AT) or (time.time() + 60 * minutes if minutes is not None else "inf"))

        def stop() -> None:
            # The handler of a signal ends waiting, for example for a judge.
            if self._handling:
                self._reason, self._own_signals = self._reason or "run.stop_after_minutes", 1
                os.kill(os.getpid(), signal.SIGUSR1)

        timer = threading.Timer(min(max(0.0, end - time.time()), threading.TIMEOUT_MAX), stop)
        timer.daemon = True
        if end < float("inf"):
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this context, a signal only sets :attr:`reason`."""
        # All processes of the run are alive here, because they have prepared it together.
        self._processes = _processes_of_launcher()
        before, self._deferred = self._deferred, True
        try:
            yield
        except BaseException:
            # The launcher ends the other processes after an error of one, whose reason must not be replaced.
            self._ends = True
            raise
        finally:
            self._deferred = before

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """In this context, inside :meth:`deferred`, a signal raises :class:`Stopped` again; so does an earlier one.

        Raises:
            Stopped: If this process was asked to stop.
        """
        before, self._deferred = self._deferred, False
        try:
            if self.reason and before:
                raise Stopped(f"stopped by {self.reason}")
            yield
        finally:
            self._deferred = before

    def leave_to_parent(self) -> None:
        """In a forked child, such as a data worker, ignore the signals, because the parent decides what its children do.

        Batch systems send the signals to all processes of a job. A second SIGTERM ends the child.
        """
        if self._handling and threading.current_thread() is threading.main_thread():
            # The pipe is that of the parent, which would count the signals of its children.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or signal.Signals(number).name
        if not self._deferred and not self._ends:
            raise Stopped(f"stopped by {self._reason}")

    def _end_at_second_signal(self, received: int) -> None:
        """Read the numbers of signals from a pipe until it is closed; end this process at the second request to stop."""
        first = None
        with os.fdopen(received, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                for number in filter(SIGNALS.__contains__, numbers):
                    if self._own_signals:
                        self._own_signals = 0
                        continue
                    if first is None:
                        first = time.monotonic()
                        # If another process has ended, the launcher ends the run, which cannot be saved then.
                        if not 0 < _processes_of_launcher() < self._processes:
                            continue
                    elif time.monotonic() - first < SAME_REQUEST_SECONDS:
                        continue
                    with suppress(OSError, ValueError):
                        sys.stderr.flush()
                    os._exit(128 + number)


STOP_REQUESTS = StopRequests()
os.register_at_fork(after_in_child=STOP_REQUESTS.leave_to_parent)


def _processes_of_launcher() -> int:
    """Return the number of living processes of the run that the launcher of this one has started; 0 if it is unknown.

    They are the children of its parent with different values of LOCAL_RANK. Behind a wrapper script, the parent is the wrapper.
    """
    if not is_worker():
        return 0
    parent, ranks = os.getppid(), set()
    with suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            with suppress(OSError):
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                ranks |= {variable for variable in variables if variable.startswith(b"LOCAL_RANK=")}
    return len(ranks)

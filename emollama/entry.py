"""Run a program and end its process: print its error once, at the end, and set the exit status, also after signals.

A program runs in a single process, as a launcher, or as a worker of a launcher.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from emollama.distributed.worker_errors import WorkerCrash, ends_restarts, printed_text, record_errors, should_print, write_stop
from emollama.distributed.worker_variables import integer, is_worker
from emollama.errors import Interrupted, OutputClosed, RemoteUserError, Stopped, UserError
from emollama.logs.console import end_bars, output_errors, printable
from emollama.logs.verbosity import show_traceback
from emollama.system_errors import as_user_errors
from emollama.variables import LAUNCHER, STEP


def entry_point(main: Callable[[], None], *, when_interrupted: str = "interrupted") -> None:
    """Run a program, and end the process if it failed, was interrupted, or was a worker.

    Args:
        main: the program.
        when_interrupted: message after Ctrl-C, unless the program raises a more specific one.
    """
    # A failed worker ends at once, because the clean-up of the process group would wait for the other workers. A successful
    # worker ends at once, because threads of libraries sometimes abort the interpreter's clean-up of a finished process.
    if status := run(main, when_interrupted=when_interrupted):
        leave(status)
    if _leave_process_group():
        leave(0)


def run(main: Callable[[], None], *, when_interrupted: str = "interrupted") -> int:
    """Run a program and return its exit status. Errors are printed; those of the user without a traceback.

    If standard output is closed before the end (``emollama ... | head``), the program ends without a message, with the exit
    status of a process that SIGPIPE ended.

    Args:
        main: the program.
        when_interrupted: message after Ctrl-C, unless the program raises a more specific one.

    Raises:
        Exception: If the program raised an unexpected exception and this process is not a worker.
    """
    _replace_closed_streams()
    worker = is_worker()
    received: list[int] = []
    try:
        if worker:
            _end_with_parent()
        with _terminable(received, enabled=not worker):
            record_errors(lambda: _run_and_flush(main))()
    except SystemExit as ended:
        return _status(ended)
    except UserError as error:
        if isinstance(error, OutputClosed) and not worker:
            return 128 + signal.SIGPIPE
        if not isinstance(error, RemoteUserError):
            show_traceback()
        _print_error(error, f"error: {error}")
        return 0 if worker and ends_restarts(error) else error.STATUS
    except WorkerCrash as crash:
        _print(str(crash))
        return crash.status
    except KeyboardInterrupt as stopped:
        if os.environ.get("RANK", "0") == "0" and not os.environ.keys() & {LAUNCHER, STEP}:
            _print(str(stopped) or when_interrupted)
        if isinstance(stopped, Stopped):
            # A launcher would report a failure, or restart the processes, if a worker had another status.
            return 0 if worker and write_stop(stopped) and (LAUNCHER in os.environ or stopped.STATUS != 1) else stopped.STATUS
        number = stopped.signal_number if isinstance(stopped, Interrupted) else (received or [signal.SIGINT])[0]
        return 128 + number
    except Exception as error:
        if not worker:
            raise
        _print_error(error, printed_text(error))
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """End this process at once."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _run_and_flush(main: Callable[[], None]) -> None:
    """Run a program and flush its output.

    Raises:
        OutputClosed: If the program that reads the output has ended.
        UserError: If the output cannot be written, or the program raised an error of memory, or one of the file system that the
            user can correct.
        BaseException: If the program raised it.
    """
    try:
        try:
            with as_user_errors():
                main()
        except SystemExit:  # for example after --help
            _flush()
            raise
        except BaseException:
            # An error of flushing must not replace the exception of the program.
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            raise
        finally:
            end_bars()
        _flush()
    except BrokenPipeError:
        if _is_closed(sys.stdout) or _is_closed(sys.stderr):
            raise OutputClosed("the program that reads the output has ended") from None
        raise


def _flush() -> None:
    with output_errors():
        sys.stdout.flush()


def _replace_closed_streams() -> None:
    """Open the null device for standard streams that were closed when the process started (``>&-``), for which Python has None.

    Files get the lowest free number, so without this, a file that is opened later would get the number of a standard stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _is_closed(stream: Any) -> bool:
    """Return whether a stream writes to a pipe that nobody reads."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # the stream has no file descriptor
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _status(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    _print(str(ended.code))
    return 1


def _print_error(error: Exception, text: str) -> None:
    if is_worker() and threading.current_thread() is threading.main_thread():
        # The launcher may already have seen another rank end, and must not end this process while it writes.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if should_print(error):
        _print(text)


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the exit status still reports the error
        sys.stderr.write(f"{printable(text.rstrip(), sys.stderr)}\n")


@contextlib.contextmanager
def _terminable(received: list[int], *, enabled: bool) -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise KeyboardInterrupt, as Ctrl-C does, and record them. Workers end without a message instead."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_process_group() -> bool:
    """Leave the process group, and return whether there was one."""
    # If torch was not imported, there is no process group.
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return False
    dist.destroy_process_group()
    return True


def _end_with_parent() -> None:
    """Start a thread that ends this worker when its launcher has ended, because a killed launcher cannot end its workers.

    Raises:
        UserError: If the launcher's environment variable is not a number.
    """
    parent = integer(LAUNCHER, os.getppid())
    name = f"emollama: watch process {parent}"
    # An earlier run in this process may have started the thread.
    if any(thread.name == name for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()

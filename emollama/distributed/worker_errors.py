"""Errors of worker processes: workers write them to the error files of torch elastic, which the launcher reads.

Every failing rank records its error, so that the reason is available regardless of which rank the launcher sees ending first.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from emollama.distributed.worker_variables import integer, is_worker
from emollama.errors import NoProgress, RemoteCrash, RemoteUserError, Stopped, Unreachable, UserError
from emollama.variables import LAUNCHER

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set by torch elastic for each worker
STOP_FILE = "stopped.txt"  # next to the error file
USER, CRASH, LOST_CONNECTION = "user", "crash", "lost connection"  # kinds of errors
# What messages of gloo and nccl contain if a process is gone. These errors have no class of their own in all versions of torch.
NETWORK = re.compile(r"gloo/|NCCL|nccl|Connection (closed|reset|refused)|Broken pipe|recvValue failed")
PEER_SECONDS = 2.0  # time for another process to record why it failed


class WorkerCrash(Exception):
    """A worker process failed with something other than a :class:`UserError`.

    Attributes:
        status: exit status of the command: that of the worker, 128 + the number of the signal that ended it, or that of
            :class:`~emollama.errors.Unreachable` if all workers lost their connections to those of another node.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class ProcessFailure(Protocol):
    """The attributes of torch elastic's ProcessFailure that are used here."""

    exitcode: int
    error_file_data: dict[str, Any]


def record_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap ``main`` so that the launcher can report this process's error.

    This is the ``record`` decorator of torch elastic without importing torch. If the launcher has set no error file, ``main``
    is returned unchanged.
    """
    if not os.environ.get(ERROR_FILE):
        return main

    def main_recorded() -> None:
        with suppress(Exception):  # standard error can be replaced by an object without a file descriptor
            faulthandler.enable(all_threads=True)
        try:
            main()
        except Exception as error:
            write_error(error)
            raise

    return main_recorded


def write_error(error: Exception) -> None:
    """Write an error to this process's error file, if the launcher has set one."""
    if not (name := os.environ.get(ERROR_FILE)):
        return
    # A full disk must not hide the error itself: without an error file, this process prints it.
    try:
        Path(name).write_text(json.dumps(error_record(error)), encoding="utf-8")
    except OSError:
        Path(name).unlink(missing_ok=True)


def write_stop(stopped: Stopped) -> bool:
    """Tell the launcher that the run stopped because it was asked to, and was saved (:func:`read_stop`).

    Returns:
        False if that is impossible, so that the launcher of this package would report that the run is complete.
    """
    try:
        if name := os.environ.get(ERROR_FILE):
            Path(name).with_name(STOP_FILE).write_text(f"{stopped.STATUS} {stopped}", encoding="utf-8")
    except OSError:
        return LAUNCHER not in os.environ
    return True


def read_stop(folder: Path) -> Stopped | None:
    """Return why a run stopped, from the launcher's folder of error files; None if its processes did not stop on request.

    Only the last attempt counts: the launcher stops the processes of earlier ones by SIGTERM, too.
    """
    for path in _files_of_last_attempt(folder, STOP_FILE):
        status, _, reason = path.read_text(encoding="utf-8").partition(" ")
        return NoProgress(reason) if int(status) == NoProgress.STATUS else Stopped(reason)
    return None


def read_user_error(folder: Path) -> UserError | None:
    """Return the user error of a process of the last attempt from the launcher's folder of error files, or None."""
    for path in _files_of_last_attempt(folder, "error.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            extra = json.loads(path.read_bytes())["message"]["extraInfo"]
            if extra["kind"] == USER:
                return _user_error(extra)
    return None


def _files_of_last_attempt(folder: Path, name: str) -> list[Path]:
    attempts = sorted(folder.rglob("attempt_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    return sorted(attempts[-1].rglob(name)) if attempts else []


def error_record(error: BaseException) -> dict[str, Any]:
    """Return the content of an error file in torch elastic's format, with the additional keys kind, status, time_ns and rank."""
    kind = USER if isinstance(error, UserError) else LOST_CONNECTION if is_lost_connection(error) else CRASH
    now = time.time_ns()
    extra = {
        "py_callstack": str(error) if kind == USER else printed_text(error),
        "timestamp": str(now // 10**9),
        "kind": kind,
        "status": getattr(error, "STATUS", 1),
        "time_ns": now,
        "rank": error.rank if isinstance(error, RemoteCrash) else int(os.environ.get("RANK", 0)),
    }
    return {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}}


def restarts_after(error: BaseException) -> bool:
    """Return whether the launcher of this package will start the processes again after an error of this process."""
    return _can_restart() and not getattr(error, "is_final", False)


def ends_restarts(error: UserError) -> bool:
    """Return whether a worker with this error has to end with status 0, so that the launcher does not restart the processes.

    The launcher finds the error in the error file (:func:`read_user_error`).
    """
    return error.is_final and _can_restart() and Path(os.environ.get(ERROR_FILE, "")).is_file()


def _can_restart() -> bool:
    count, most = (integer(f"TORCHELASTIC_{name}", 0) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return LAUNCHER in os.environ and count < most


def format_traceback(error: BaseException) -> str:
    """Return the traceback of an exception; for an echoed crash, the traceback of the rank that crashed."""
    return error.trace if isinstance(error, RemoteCrash) else "".join(traceback.format_exception(error))


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error only says that another process is gone, or cannot be reached."""
    return isinstance(error, RuntimeError) and not isinstance(error, RemoteCrash) and bool(NETWORK.search(str(error)))


def printed_text(error: BaseException) -> str:
    """Return what a worker prints about an unexpected exception: its traceback, unless another process is the cause."""
    if not is_lost_connection(error):
        return format_traceback(error)
    reason = re.sub(r"^\[.*?\] ", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
    return (
        f"error: process {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)} lost its connection to another process,"
        " which was probably killed (did its machine run out of memory?) or cannot be reached over the network."
        f" ({reason})"
    )


def should_print(error: BaseException) -> bool:
    """Return whether this process prints its error, which only one of the processes of a launcher does.

    The launcher of this package prints the error itself, unless it starts the processes again.
    """
    path = os.environ.get(ERROR_FILE)
    if not (is_worker() and path and Path(path).is_file()):
        return not isinstance(error, RemoteUserError | RemoteCrash)
    if LAUNCHER in os.environ and not restarts_after(error):
        return False
    if is_lost_connection(error) and _another_process_failed(Path(path)):
        return False
    try:
        Path(path).parent.with_name("printed").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _another_process_failed(path: Path) -> bool:
    """Return whether another process of this machine recorded an error of its own soon after this process lost a connection."""
    end = time.monotonic() + PEER_SECONDS
    while time.monotonic() < end:
        for other in path.parent.parent.glob(f"*/{path.name}"):
            # The file can be incomplete.
            with suppress(OSError, ValueError, KeyError):
                if json.loads(other.read_bytes())["message"]["extraInfo"]["kind"] != LOST_CONNECTION:
                    return True
        time.sleep(0.1)
    return False


def first_failure(failures: Mapping[int, ProcessFailure], processes: int) -> UserError | WorkerCrash:
    """Choose the failure that explains why workers failed, and return its exception.

    A process that loses its connection to a failed process fails, too. A user error therefore comes first, then a process that
    ended without a record (for example, killed by a signal), then the earliest crash, then lost connections. Processes that the
    launcher ended come last.

    Args:
        failures: rank -> failure.
        processes: number of processes that were launched.
    """
    rank = min(failures, key=lambda rank: (*_order(failures[rank]), rank))
    failure, record = failures[rank], _record(failures[rank])
    status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    if record is None:
        return WorkerCrash(f"error: process {rank} of {processes} {_ended(failure.exitcode)}", status)
    if record.get("kind") == USER:
        return _user_error(record)
    crashed, trace = record.get("rank", rank), str(record["py_callstack"]).rstrip()
    if record.get("kind") == LOST_CONNECTION:  # the process that caused this is on another node
        return WorkerCrash(trace, Unreachable.STATUS)
    return WorkerCrash(f"process {crashed} of {processes} failed:\n{trace}", status)


def _record(failure: ProcessFailure) -> dict[str, Any] | None:
    message = failure.error_file_data.get("message")
    extra = message.get("extraInfo") if isinstance(message, dict) else None
    return extra if isinstance(extra, dict) and "py_callstack" in extra else None


def _user_error(record: dict[str, Any]) -> UserError:
    kind = Unreachable if record.get("status") == Unreachable.STATUS else UserError
    return kind(str(record["py_callstack"]))


def _order(failure: ProcessFailure) -> tuple[int, int]:
    record = _record(failure)
    if record is None:
        return (4 if failure.exitcode == -signal.SIGTERM else 1), 0
    return {USER: 0, LOST_CONNECTION: 3}.get(str(record.get("kind")), 2), int(record.get("time_ns", 0))


def _ended(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with exit status {exitcode} and no message"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    hint = ". The system may have run out of memory" if exitcode == -signal.SIGKILL else ""
    return f"was ended by {name}{hint}"

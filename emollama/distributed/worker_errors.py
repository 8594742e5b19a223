"""Errors of worker processes: workers write them to the error files of torch elastic, which the launcher reads.

Every failing rank records its error, so that the reason is available regardless of which rank the launcher sees ending first.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from emollama.distributed.worker_variables import is_worker
from emollama.errors import RemoteCrash, RemoteUserError, UserError
from emollama.variables import LAUNCHER

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set by torch elastic for each worker
USER, CRASH = "user", "crash"


class WorkerCrash(Exception):
    """A worker process failed with something other than a :class:`UserError`.

    Attributes:
        status: exit status of the command: that of the worker, or 128 + the number of the signal that ended it.
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
            _write(error, Path(os.environ[ERROR_FILE]))
            raise

    return main_recorded


def _write(error: Exception, path: Path) -> None:
    # A full disk must not hide the error itself: without an error file, this process prints it.
    try:
        path.write_text(json.dumps(error_record(error)), encoding="utf-8")
    except OSError:
        path.unlink(missing_ok=True)


def error_record(error: BaseException) -> dict[str, Any]:
    """Return the content of an error file in torch elastic's format, with the additional keys kind, time_ns and rank."""
    user = isinstance(error, UserError)
    now = time.time_ns()
    extra = {
        "py_callstack": str(error) if user else format_traceback(error),
        "timestamp": str(now // 10**9),
        "kind": USER if user else CRASH,
        "time_ns": now,
        "rank": error.rank if isinstance(error, RemoteCrash) else int(os.environ.get("RANK", 0)),
    }
    return {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}}


def format_traceback(error: BaseException) -> str:
    """Return the traceback of an exception; for an echoed crash, the traceback of the rank that crashed."""
    return error.trace if isinstance(error, RemoteCrash) else "".join(traceback.format_exception(error))


def should_print(error: BaseException) -> bool:
    """Return whether this process prints its error, which only one of the processes of a launcher does."""
    path = os.environ.get(ERROR_FILE)
    if not (is_worker() and path and Path(path).is_file()):
        return not isinstance(error, RemoteUserError | RemoteCrash)
    if LAUNCHER in os.environ:
        return False
    try:
        Path(path).parent.with_name("printed").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def first_failure(failures: Mapping[int, ProcessFailure], processes: int) -> UserError | WorkerCrash:
    """Choose the failure that explains why workers failed, and return its exception.

    A process that loses its connection to a failed process fails, too. A user error therefore comes first, then a process that
    ended without a record (for example, killed by a signal), then the earliest crash. Processes that the launcher ended come
    last.

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
        return UserError(str(record["py_callstack"]))
    crashed, trace = record.get("rank", rank), str(record["py_callstack"]).rstrip()
    return WorkerCrash(f"process {crashed} of {processes} failed:\n{trace}", status)


def _record(failure: ProcessFailure) -> dict[str, Any] | None:
    message = failure.error_file_data.get("message")
    extra = message.get("extraInfo") if isinstance(message, dict) else None
    return extra if isinstance(extra, dict) and "py_callstack" in extra else None


def _order(failure: ProcessFailure) -> tuple[int, int]:
    record = _record(failure)
    if record is None:
        return (3 if failure.exitcode == -signal.SIGTERM else 1), 0
    return (0 if record.get("kind") == USER else 2), int(record.get("time_ns", 0))


def _ended(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with exit status {exitcode} and no message"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    hint = ". The system may have run out of memory" if exitcode == -signal.SIGKILL else ""
    return f"was ended by {name}{hint}"

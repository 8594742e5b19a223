"""Exceptions of the package."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class UserError(ValueError):
    """A problem in the user's files, configuration or environment.

    The message names the file, line or key and the remedy. Entry points print it without a traceback.

    Attributes:
        STATUS: exit status of the command.
        is_final: whether all processes of the run raise it, and would raise it again if a launcher restarted them.
    """

    STATUS = 1
    is_final = False


class Unreachable(UserError):
    """Another node of the run cannot be reached, has failed or was stopped, so that another attempt can succeed."""

    STATUS = 69  # EX_UNAVAILABLE of sysexits.h


class OutputClosed(UserError):
    """The program that reads standard output or standard error has ended, as ``head`` does after ten lines."""


class DownloadError(UserError):
    """A file at a remote location cannot be read. The message names the URL, the reason and the remedy."""


class FileAbsent(DownloadError):
    """There is no such file at a remote location."""


class ServerFailure(DownloadError):
    """The server of a remote file does not answer or fails, so that an earlier copy of the file can be used.

    Attributes:
        answered: whether the server answered.
    """

    # The default is for PyTorch, which creates the error of a data worker again from its message alone.
    def __init__(self, message: str, answered: bool = True) -> None:
        super().__init__(message, answered)
        self.answered = answered

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteUserError(UserError):
    """A :class:`UserError` of another rank, raised on this rank to stop it. Only the other rank prints the error."""


class RemoteCrash(RuntimeError):
    """An unexpected exception of another rank, raised on this rank to stop it. Only the other rank prints the error.

    Attributes:
        rank: rank of the process that crashed.
        trace: traceback of that process.
    """

    def __init__(self, message: str, rank: int, trace: str) -> None:
        # pickle creates the exception again from the arguments of the base class, so it needs all of them.
        super().__init__(message, rank, trace)
        self.rank, self.trace = rank, trace

    def __str__(self) -> str:
        return f"process {self.rank}: {self.args[0]}"


class Interrupted(KeyboardInterrupt):
    """The command was interrupted by a signal.

    Attributes:
        signal_number: number of the signal, such as SIGINT or SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Stopped(KeyboardInterrupt):
    """A run stopped because it was asked to (SIGTERM, SIGUSR1, ``run.stop_after_minutes``), and another run can continue it.

    It is not an :class:`Exception`, so that no code mistakes it for a failure.
    """

    STATUS = 75  # exit status of the command: EX_TEMPFAIL of sysexits.h, "try again later"


class NoProgress(Stopped):
    """A run that was restarted several times from the same step stops, because another attempt would fail, too."""

    STATUS = 1


def require_at_least(minimum: float, cfg: Any, *keys: str) -> None:
    """Check that values of a Config are finite and not below a minimum. None is allowed.

    Raises:
        ValueError: If a value is too small or not finite; the message names the key, its value and the minimum.
    """
    for key in keys:
        value = getattr(cfg, key)
        if value is not None and not minimum <= value < math.inf:
            number = "" if math.isfinite(value) else "a finite number of "
            raise ValueError(f"{key} is {value}; it must be {number}at least {minimum}")


@contextmanager
def final_errors() -> Iterator[None]:
    """Mark a :class:`UserError` that the body raises in all processes, so that they are not restarted."""
    try:
        yield
    except UserError as error:
        error.is_final = True
        raise


class ErrorCollector:
    """Collects the errors of independent checks; as a context manager, it catches a :class:`UserError` of its body."""

    def __init__(self) -> None:
        self._errors: dict[str, UserError] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    def __enter__(self) -> None:
        pass

    def __exit__(self, error_class: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, UserError):
            return False
        self._errors.setdefault(str(error), error)
        return True

    def raise_all(self) -> None:
        """Raise a single error with all messages if any error was collected.

        Raises:
            UserError: If an error was collected.
            RemoteUserError: If all collected errors are those of another rank.
        """
        if not self._errors:
            return
        texts = list(self._errors)
        are_remote = all(isinstance(error, RemoteUserError) for error in self._errors.values())
        text = texts[0] if len(texts) == 1 else f"{len(texts)} problems:\n- " + "\n- ".join(texts)
        raise (RemoteUserError if are_remote else UserError)(text)

"""The files of a training's log. A training continues if they cannot be written, for example because the disk is full."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emollama.disk import reason, remedy
from emollama.logs.logger import get_logger

# If an interrupt prevents the wake-up of TensorBoard's writer thread, the end of the run waits for up to this number of seconds.
FLUSH_SECONDS = 5
FREE_BYTES = 2**20  # free space with which a new event file of TensorBoard is started after a failure


class WriteFailures:
    """Warns once if files of the log cannot be written, and says when they can be written again."""

    def __init__(self) -> None:
        self._failed: set[Path] = set()

    @contextmanager
    def tolerated(self, path: Path) -> Iterator[None]:
        """Log a warning instead of an OSError of this block, which writes the file ``path``."""
        try:
            yield
        except OSError as error:
            self.add(path, error)
        else:
            self.remove(path)

    def add(self, path: Path, error: Exception) -> None:
        """Record that a file could not be written, and log a warning if all files could be written before."""
        if not self._failed:
            text = "%s could not be written: %s. %s Training continues, and the log is written again when that is possible."
            get_logger().warning(text, path, reason(error), remedy(error))
        self._failed.add(path)

    def remove(self, path: Path) -> None:
        """Record that a file was written, and log a line if it was the last one that could not be written before."""
        if path in self._failed:
            self._failed.remove(path)
            if not self._failed:
                get_logger().info("the log is written again")


class LogFile:
    """A file to which lines are appended. What could not be written is written before the next line.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def append(self, line: str) -> None:
        """Write a line.

        Raises:
            OSError: If it cannot be written completely.
        """
        self._unwritten += line.encode()
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Write the rest and close the file.

        Raises:
            OSError: If the rest cannot be written.
        """
        try:
            self.append("")
        finally:
            self._file.close()


class TensorBoard:
    """TensorBoard's event files in a folder. After a failure, a new file is started when there is space.

    Args:
        folder: the folder.
        first_step: TensorBoard hides the events of earlier processes from this step on.
        failures: records that nothing could be written.
    """

    def __init__(self, folder: Path, first_step: int, failures: WriteFailures) -> None:
        self._folder, self._failures = folder, failures
        self._thread_error, threading.excepthook = threading.excepthook, self._ignore_writer
        self._writer: Any = self._started(first_step)

    def write(self, write: Callable[[Any], object]) -> None:
        """Call a function with the ``SummaryWriter``. Errors are recorded."""
        with self._recorded():
            if self._writer is None and shutil.disk_usage(self._folder).free >= FREE_BYTES:
                self._writer = self._started(None)
                self._failures.remove(self._folder)
            if self._writer is not None:
                write(self._writer)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by their tags."""
        for tag, value in values.items():
            self.write(lambda writer, tag=tag, value=value: writer.add_scalar(tag, value, step))  # type: ignore[misc]

    def summaries(self, *summaries: Any) -> None:
        """Write summaries that ``torch.utils.tensorboard.summary`` has made."""
        for summary in summaries:
            self.write(lambda writer, summary=summary: writer.file_writer.add_summary(summary))  # type: ignore[misc]

    def close(self) -> None:
        """Write everything and close the file."""
        with self._recorded():
            if self._writer is not None:
                self._writer.close()
        threading.excepthook = self._thread_error

    def _started(self, first_step: int | None) -> Any:
        # Imported here because it is slow, and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=first_step, flush_secs=FLUSH_SECONDS)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # If TensorFlow is installed, TensorBoard writes through it, and the errors of writing are TensorFlow's.
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] != "tensorflow":
                raise
            self._failures.add(self._folder, error)
            failed, self._writer = self._writer, None
            if failed is not None:
                with suppress(Exception):
                    failed.close()

    def _ignore_writer(self, failure: threading.ExceptHookArgs) -> None:
        """Print no traceback for TensorBoard's thread, because the next call of the writer raises its exception."""
        if type(failure.thread).__module__.partition(".")[0] != "tensorboard":
            self._thread_error(failure)

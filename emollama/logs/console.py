"""Output for people: log lines, progress and tables, with colour and bars on a terminal and as plain text elsewhere.

Results are written to standard output, log lines and progress to standard error. Control characters are only written to
terminals, and lines are never wrapped or shortened, so that scripts can read them. rich is only imported for a terminal or a
table.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.heartbeat import beat
from emollama.logs.verbosity import SETTINGS
from emollama.text_encoding import escaped

Item = TypeVar("Item")
LINE_SECONDS = 10.0  # time between progress lines without a terminal; a phase that takes longer always ends with a line
REFRESH_SECONDS = 0.25  # minimum time between updates of a bar
COLUMN_GAP = 2
SHOW_CURSOR = "\x1b[?25h"
CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal that supports control characters."""
    return os.environ.get("TERM") not in ("dumb", "unknown") and not stream.closed and bool(stream.isatty())


def write(text: str) -> None:
    """Write a result to standard output, with colour on a terminal.

    Control characters and characters outside the stream's encoding are escaped.

    Raises:
        UserError: If the output cannot be written.
    """
    text = printable(text, sys.stdout)
    with output_errors():
        if is_terminal(sys.stdout):
            from emollama.logs.bars import print_coloured

            print_coloured(text)
        else:
            sys.stdout.write(text)


def write_plain(text: str) -> None:
    """Write a result for other programs to standard output, without colour and without escaping control characters.

    Raises:
        UserError: If the output cannot be written.
    """
    with output_errors():
        sys.stdout.write(_encodable(text, sys.stdout))


@contextmanager
def output_errors() -> Iterator[None]:
    """Convert errors of writing to standard output to user errors, except for closed pipes.

    Raises:
        UserError: If writing failed, for example because the disk is full.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        what = remedy(error, "redirect the output to another disk")
        raise UserError(f"cannot write to standard output: {error.strerror}. {what}") from None


def end_bars() -> None:
    """Remove the bars of this process that are still shown, and show the cursor, which they hide.

    This is needed because an interrupt can come between the start of a bar and the code that removes it.
    """
    # If the module was not imported, there are no bars.
    bars = sys.modules.get("emollama.logs.bars")
    if bars is not None:
        with suppress(OSError):  # the terminal can be closed
            bars.display().end()


def show_cursor() -> None:
    """Show the cursor if standard error is a terminal, because a process that was killed can leave it hidden."""
    if is_terminal(sys.stderr):
        with suppress(OSError):
            sys.stderr.write(SHOW_CURSOR)
            sys.stderr.flush()


def dry_run_summary(rows: Iterable[Sequence[str]]) -> str:
    """Return the output of a ``--dry-run`` without problems: a line for each pair of name and value, and a closing line."""
    return "\n".join([*aligned([list(row) for row in rows], left=(0, 1)), "no problem was found; nothing was written"]) + "\n"


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table without borders.

    Args:
        rows: cells of each row; all rows have the same number of cells. A heading is an ordinary row.
        left: indices of the columns that are aligned to the left; all others are aligned to the right.
    """
    from emollama.logs.bars import table_lines

    return table_lines(rows, left, COLUMN_GAP)


def markdown_table(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a Markdown table whose columns are also aligned in plain text.

    Args:
        rows: cells of the heading and of each row; all rows have the same number of cells.
        left: indices of the columns that are aligned to the left; all others are aligned to the right.
    """
    from emollama.logs.bars import markdown_lines

    return markdown_lines([[cell.replace("|", r"\|") for cell in row] for row in rows], left)


def duration(seconds: float) -> str:
    """Format a number of seconds as hours, minutes and seconds, such as ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def printable(text: str, stream: Any) -> str:
    """Escape control characters, and characters outside the stream's encoding."""
    return _encodable(text, stream).translate(CONTROL_CHARACTERS)


def _encodable(text: str, stream: Any) -> str:
    """Escape characters outside the stream's encoding with backslashes."""
    return escaped(text, getattr(stream, "encoding", None) or "utf-8")


def _log(text: str) -> None:
    """Log a line, or write it directly if the command has not set up the logger."""
    logger = logging.getLogger("emollama")
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", text)
    else:
        sys.stderr.write(f"{printable(text, sys.stderr)}\n")
        sys.stderr.flush()


def track(items: Iterable[Item], total: int, label: str, *, unit: str = "") -> Iterator[Item]:
    """Yield the items and show the progress of the loop over them; see :class:`Progress`."""
    with Progress(total, label, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


class ConsoleHandler(logging.Handler):
    """Writes log lines to standard error, above the bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one log line."""
        try:
            text = printable(self.format(record), sys.stderr)
            if is_terminal(sys.stderr):
                from emollama.logs.bars import display

                display().log(text, record.levelno)
            else:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)


class Progress:
    """Progress of a long phase: a bar on a terminal, otherwise a log line about every ten seconds.

    It is a context manager that ends the phase. Nothing is shown with ``--quiet`` or on ranks other than 0.

    Args:
        total: number of items.
        label: name of the phase.
        enabled: False shows nothing.
        unit: name of the items in the plural; if it is set, their speed is shown, too.
        initial: number of items that were done before this phase.
        clock: returns the time in seconds.

    Attributes:
        lines: whether lines are written without a terminal and at the end.
    """

    lines = True

    def __init__(
        self,
        total: int,
        label: str,
        *,
        enabled: bool = True,
        unit: str = "",
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.done = total, label, initial
        self._unit, self._initial, self._clock = unit, initial, clock
        self.shown = enabled and SETTINGS.level >= 0 and os.environ.get("RANK", "0") == "0"
        self._start = self._refreshed = clock()
        self._display: Any = None
        if self.shown and is_terminal(sys.stderr):
            from emollama.logs.bars import display

            self._display = display()
            self._bar = self._display.add(label, total, initial)

    @property
    def has_bar(self) -> bool:
        """Whether a bar is shown, rather than lines."""
        return self._display is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Add to the number of items that are done."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set the number of items that are done, which the watchdog counts as progress."""
        self.done = done
        beat()
        if not self.shown:
            return
        now = self._clock()
        if now - self._refreshed < (REFRESH_SECONDS if self.has_bar else LINE_SECONDS):
            return
        self._refreshed = now
        if self._display is not None:
            self._display.update(self._bar, self.label, done, self._speed_and_eta(now))
        elif self.lines and self._initial < done < self.total:
            _log(f"{self._count()} ({100 * done // self.total}%){self._speed_and_eta(now)}")

    def exclude(self, seconds: float) -> None:
        """Exclude a pause from the speed and the estimated time."""
        self._start += seconds

    def close(self) -> None:
        """Remove the bar, and write a line if the phase is complete and took long."""
        seconds = self._clock() - self._start
        if self._display is not None:
            self._display.remove(self._bar)
            self._display = None
        if self.shown and self.lines and self.done >= self.total and seconds >= LINE_SECONDS:
            _log(f"{self._count()} (100%) in {duration(seconds)}")
        self.shown = False

    def _count(self) -> str:
        return f"{self.label}: {self.done} of {self.total} {self._unit}".rstrip()

    def _speed_and_eta(self, now: float) -> str:
        done, seconds = self.done - self._initial, now - self._start
        if done <= 0 or seconds <= 0:
            return ""
        speed = f", {done / seconds:.1f} {self._unit}/s" if self._unit else ""
        return f"{speed}, eta {duration((self.total - self.done) * seconds / done)}"

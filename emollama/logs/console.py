"""Output for people: log lines, progress and tables. A terminal gets colour and bars, everything else plain text.

Results go to standard output, log lines and progress to standard error. Files and pipes never receive control characters, and
lines are never wrapped or cut, so that scripts can read them. rich is imported only where a terminal or a table needs it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

from emollama.errors import UserError
from emollama.logs.verbosity import SETTINGS

Item = TypeVar("Item")
LINE_SECONDS = 10.0  # between lines of progress without a terminal; a phase that lasted longer ends with a line everywhere
REFRESH_SECONDS = 0.25  # between redrawings of a bar
COLUMN_GAP = 2
SHOW_CURSOR = "\x1b[?25h"
CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that understands control characters."""
    return os.environ.get("TERM") not in ("dumb", "unknown") and not stream.closed and bool(stream.isatty())


def write(text: str) -> None:
    """Write a result to standard output, with colour on a terminal.

    Control characters are escaped, and so is what the stream's encoding lacks, undecodable bytes included.

    Raises:
        UserError: the output cannot be written.
    """
    text = printable(text, sys.stdout)
    with output_errors():
        if is_terminal(sys.stdout):
            from emollama.logs.bars import print_coloured

            print_coloured(text)
        else:
            sys.stdout.write(text)


def write_plain(text: str) -> None:
    """Write a result for other programs to standard output: without colour, and with control characters.

    Raises:
        UserError: the output cannot be written.
    """
    with output_errors():
        sys.stdout.write(_encodable(text, sys.stdout))


@contextmanager
def output_errors() -> Iterator[None]:
    """Around writing to standard output.

    Raises:
        UserError: it failed, for lack of space as a rule. A closed pipe is left to the caller.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to standard output: {error.strerror}. Make room, or send the output elsewhere.") from None


def end_bars() -> None:
    """Remove the bars of this process that are still shown, and show the cursor, which they hide.

    An interrupt may come between the start of a bar and the code that removes it.
    """
    bars = sys.modules.get("emollama.logs.bars")  # not imported, no bars
    if bars is not None:
        with suppress(OSError):  # the terminal may be gone
            bars.display().end()


def show_cursor() -> None:
    """Show the cursor of the terminal that standard error is, if it is one: another process may have ended with a bar."""
    if is_terminal(sys.stderr):
        with suppress(OSError):
            sys.stderr.write(SHOW_CURSOR)
            sys.stderr.flush()


def dry_run_summary(facts: Iterable[Sequence[str]]) -> str:
    """Return what ``--dry-run`` prints when it finds no problem: a name and a value per line, and a closing line."""
    return "\n".join([*aligned([list(fact) for fact in facts], left=(0, 1)), "no problem was found; nothing was written"]) + "\n"


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Lines of a table without borders.

    Args:
        rows: cells of equal number; a heading is an ordinary row.
        left: numbers of the columns that are aligned to the left; the others are aligned to the right.
    """
    from emollama.logs.bars import table_lines

    return table_lines(rows, left, COLUMN_GAP)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def printable(text: str, stream: Any) -> str:
    """The text with control characters, and what the stream's encoding lacks, escaped."""
    return _encodable(text, stream).translate(CONTROL_CHARACTERS)


def _encodable(text: str, stream: Any) -> str:
    """The text with what the stream's encoding lacks as ``\\x`` and ``\\u`` escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _log(text: str) -> None:
    """Log a line; commands that set up no logger write it directly."""
    logger = logging.getLogger("emollama")
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", text)
    else:
        sys.stderr.write(f"{printable(text, sys.stderr)}\n")
        sys.stderr.flush()


def track(items: Iterable[Item], total: int, label: str, *, unit: str = "") -> Iterator[Item]:
    """Yield the items, and show the progress of the loop over them (:class:`Progress`)."""
    with Progress(total, label, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


class ConsoleHandler(logging.Handler):
    """Writes log lines to standard error, above a bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
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
    """Progress of a long phase: a bar on a terminal, else a log line about every ten seconds. A context that ends it.

    Nothing is shown where it is disabled, with ``--quiet``, or by processes other than the first of several.

    Args:
        total: number of items.
        label: what is in progress.
        enabled: False shows nothing.
        unit: name of the items, in the plural; their speed is shown with it.
        initial: number of items that were done before.
        clock: returns seconds.

    Attributes:
        lines: whether lines are written where there is no terminal, and at the end.
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
        self._begun = self._refreshed = clock()
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
        """Add items that are done."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set the number of items that are done."""
        self.done = done
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
        """Exclude a pause from the speed and the estimate."""
        self._begun += seconds

    def close(self) -> None:
        """Remove the bar. A phase that is complete and took long ends with a line."""
        seconds = self._clock() - self._begun
        if self._display is not None:
            self._display.remove(self._bar)
            self._display = None
        if self.shown and self.lines and self.done >= self.total and seconds >= LINE_SECONDS:
            _log(f"{self._count()} (100%) in {duration(seconds)}")
        self.shown = False

    def _count(self) -> str:
        return f"{self.label}: {self.done} of {self.total} {self._unit}".rstrip()

    def _speed_and_eta(self, now: float) -> str:
        done, seconds = self.done - self._initial, now - self._begun
        if done <= 0 or seconds <= 0:
            return ""
        speed = f", {done / seconds:.1f} {self._unit}/s" if self._unit else ""
        return f"{speed}, eta {duration((self.total - self.done) * seconds / done)}"

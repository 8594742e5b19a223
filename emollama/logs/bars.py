"""Terminal output with rich: progress bars below the log lines, colour, and tables. Imported only when needed."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from functools import cache

from rich.box import MARKDOWN
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

LABEL_WIDTH = 26  # maximum width of a bar's label in characters
STYLES = {logging.ERROR: "red", logging.WARNING: "yellow"}


class Display:
    """The progress bars at the bottom of the terminal. A bar disappears when it is complete.

    Args:
        console: console of rich for the bars; None is standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, force_terminal=True)
        self._bars: Progress | None = None

    def add(self, label: str, total: int, done: int) -> TaskID:
        """Add a bar and show it."""
        if self._bars is None:
            label_column = Column(no_wrap=True, overflow="ellipsis", max_width=LABEL_WIDTH)
            columns = (
                TextColumn("{task.description}", markup=False, table_column=label_column),
                BarColumn(None, table_column=Column(ratio=1, min_width=4)),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[eta]}", markup=False, table_column=Column(no_wrap=True)),
            )
            # Without automatic refresh, rich starts no thread, and data workers can be forked while a bar is shown.
            self._bars = Progress(
                *columns, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, expand=True
            )
            self._bars.start()
        return self._bars.add_task(label, total=total, completed=done, eta="")

    def update(self, bar: TaskID, label: str, done: int, eta: str) -> None:
        """Update a bar and redraw all bars."""
        if self._bars is not None:
            eta = eta.removeprefix(", ")
            self._bars.update(bar, description=label, completed=done, eta=eta, refresh=True)

    def remove(self, bar: TaskID) -> None:
        """Remove a bar. The display ends with the last bar."""
        if self._bars is None:
            return
        self._bars.remove_task(bar)
        self._bars.refresh()
        if not self._bars.tasks:
            self._bars.stop()
            self._bars = None

    def end(self) -> None:
        """Remove all bars."""
        bars, self._bars = self._bars, None
        if bars is not None:
            bars.stop()

    def log(self, text: str, level: int) -> None:
        """Write a log line above the bars."""
        style = next((style for minimum, style in STYLES.items() if level >= minimum), "")
        self._console.print(Text(text, style=style), soft_wrap=True, highlight=False)


@cache
def display() -> Display:
    """Return the display of this process."""
    return Display()


def _leave_display_to_parent() -> None:
    """Make a forked process write its messages directly, without bars."""
    display.cache_clear()
    if isinstance(sys.stderr, FileProxy):
        sys.stderr = sys.stderr.rich_proxied_file


os.register_at_fork(after_in_child=_leave_display_to_parent)


def print_coloured(text: str) -> None:
    """Write text to standard output with highlighted numbers, paths and names."""
    Console(force_terminal=True).print(text, end="", markup=False, emoji=False, soft_wrap=True)


def table_lines(rows: Sequence[Sequence[str]], left: Sequence[int], gap: int) -> list[str]:
    """Return the lines of a table without borders; see :func:`~emollama.logs.console.aligned`.

    Args:
        rows: cells of each row.
        left: indices of the columns that are aligned to the left.
        gap: number of spaces between columns.
    """
    if not rows:
        return []
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, gap, 0, 0))
    for column in range(len(rows[0])):
        table.add_column(justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return _rendered(table, rows, gap)


def markdown_lines(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Return the lines of a Markdown table; see :func:`~emollama.logs.console.markdown_table`."""
    table = Table(box=MARKDOWN)
    for column, head in enumerate(rows[0]):
        table.add_column(Text(head), justify="left" if column in left else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    head, rule, *lines = (line for line in _rendered(table, rows, 3) if line)
    parts = [part if column in left else f"{part[:-1]}:" for column, part in enumerate(rule[1:-1].split("|"))]
    return [head, f"|{'|'.join(parts)}|", *lines]


def _rendered(table: Table, rows: Sequence[Sequence[str]], gap: int) -> list[str]:
    """Return the lines of a table; ``gap`` is the number of characters between two columns."""
    # Wide enough for all cells, since rich would shorten them: characters of some scripts are two columns wide.
    width = max(sum(len(cell) * 2 + gap for cell in row) for row in rows) * len(rows[0]) + 1
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]

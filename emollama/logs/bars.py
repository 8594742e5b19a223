"""What rich draws: bars below the log lines on a terminal, colour, and the columns of tables. Imported only when needed."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from functools import cache

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

LABEL_WIDTH = 26  # the bar itself takes what the other columns leave
STYLES = {logging.ERROR: "red", logging.WARNING: "yellow"}


class Display:
    """The bars at the bottom of the terminal; they disappear when they are complete.

    It draws only when it is told to and starts no thread, so that processes may be forked while a bar is shown.

    Args:
        console: where to draw; None draws on standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, force_terminal=True)
        self._bars: Progress | None = None

    def add(self, label: str, total: int, done: int) -> TaskID:
        """Show a bar."""
        if self._bars is None:
            label_column = Column(no_wrap=True, overflow="ellipsis", max_width=LABEL_WIDTH)
            columns = (
                TextColumn("{task.description}", markup=False, table_column=label_column),
                BarColumn(None, table_column=Column(ratio=1, min_width=4)),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[eta]}", markup=False, table_column=Column(no_wrap=True)),
            )
            self._bars = Progress(
                *columns, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, expand=True
            )
            self._bars.start()
        return self._bars.add_task(label, total=total, completed=done, eta="")

    def update(self, bar: TaskID, label: str, done: int, eta: str) -> None:
        """Set what a bar shows, and draw all of them."""
        if self._bars is not None:
            eta = eta.removeprefix(", ")
            self._bars.update(bar, description=label, completed=done, eta=eta, refresh=True)

    def remove(self, bar: TaskID) -> None:
        """Remove a bar; with the last one the display ends."""
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
        """Write a line above the bars."""
        style = next((style for least, style in STYLES.items() if level >= least), "")
        self._console.print(Text(text, style=style), soft_wrap=True, highlight=False)


@cache
def display() -> Display:
    """The display of this process."""
    return Display()


def _leave_display_to_parent() -> None:
    """A forked process shows no bars and writes its messages directly."""
    display.cache_clear()
    if isinstance(sys.stderr, FileProxy):
        sys.stderr = sys.stderr.rich_proxied_file


os.register_at_fork(after_in_child=_leave_display_to_parent)


def print_coloured(text: str) -> None:
    """Write text to standard output, with numbers, paths and names highlighted."""
    Console(force_terminal=True).print(text, end="", markup=False, emoji=False, soft_wrap=True)


def table_lines(rows: Sequence[Sequence[str]], left: Sequence[int], gap: int) -> list[str]:
    """Lines of a table without borders, as wide as its cells need; the columns numbered in ``left`` are aligned to the left."""
    if not rows:
        return []
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, gap, 0, 0))
    for number in range(len(rows[0])):
        table.add_column(justify="left" if number in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    width = max(sum(len(cell) * 2 + gap for cell in row) for row in rows) * len(rows[0]) + 1
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]

"""Log failures without the texts of visitors, which the messages of exceptions can contain."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from emollama.logs.logger import get_logger


def log_failure(error: BaseException) -> None:
    """Log the class of an exception and where it was raised."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    get_logger().error("the page failed with %s:\n%s", type(error).__name__, frames.rstrip())


@contextmanager
def tracebacks_without_messages() -> Iterator[None]:
    """In this context, ``traceback.print_exc`` logs as :func:`log_failure` does. Gradio calls it for events that fail."""
    before = traceback.print_exc

    def print_exc(*arguments: Any, **options: Any) -> None:
        if (error := sys.exception()) is not None:
            log_failure(error)

    traceback.print_exc = print_exc
    try:
        yield
    finally:
        traceback.print_exc = before

"""Errors of components that may be a user's code: metrics, metric inputs, fusion modules, datasets."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from emollama.errors import UserError


class ComponentFailed(UserError):
    """A component raised an exception or returned something unusable."""


@contextmanager
def reported(what: str, component: Any) -> Iterator[None]:
    """Report any exception of a component, except a :class:`UserError`, with the file and line of the component's code.

    ``sys.exit`` is reported, too.

    Args:
        what: the component in the message, such as "metric 'war'".
        component: its class or function.

    Raises:
        ComponentFailed: If the component raised an exception, which is the cause of this one.
    """
    try:
        yield
    except UserError:
        raise
    # Without SystemExit, a component that calls sys.exit(0) would end the command as if it had succeeded.
    except (Exception, SystemExit) as error:
        logging.getLogger("emollama").debug("%s", what, exc_info=True)
        file = source_file(component)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        place = f"{file}, line {lines[-1]}" if lines else file
        problem = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ComponentFailed(f"{what} ({place}) failed with {problem.rstrip('.')}. Correct its code.") from error


def source_file(component: Any) -> str:
    """Return the file of a class or function, or its module if the file is unknown."""
    try:
        return inspect.getsourcefile(inspect.unwrap(component)) or ""
    except TypeError:
        return str(getattr(component, "__module__", type(component).__module__))

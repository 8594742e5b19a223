"""The verbosity of this process, which the command line sets: quiet, normal or verbose, and whether tracebacks are shown."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from dataclasses import dataclass


@dataclass
class Verbosity:
    """Verbosity settings.

    Attributes:
        level: -1 prints only warnings and errors, 0 is normal, 1 also prints debug messages and the warnings of libraries.
        debug: print the traceback of an error that is otherwise printed as a single line.
    """

    level: int = 0
    debug: bool = False


SETTINGS = Verbosity()


def configure(*, quiet: bool = False, verbose: bool = False, debug: bool = False) -> None:
    """Apply ``--quiet``, ``--verbose`` and ``--debug`` to this process."""
    before = SETTINGS.level
    SETTINGS.level, SETTINGS.debug = verbose - quiet, debug
    if SETTINGS.level or before:
        logging.getLogger("emollama").setLevel(log_level(is_main=True) if SETTINGS.level else logging.NOTSET)
    if verbose:
        warnings.simplefilter("default")


def log_level(*, is_main: bool) -> int:
    """Return the level of the package's logger; processes other than the main process only log warnings."""
    return {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[SETTINGS.level] if is_main else logging.WARNING


def show_traceback() -> None:
    """Print the traceback of the exception that is being handled, if ``--debug`` is set."""
    if SETTINGS.debug:
        traceback.print_exc(file=sys.stderr)

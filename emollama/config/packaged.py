"""The shipped configurations: those of the working folder, else the package's copies."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path

from emollama import variables
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.paths import PACKAGE, packaged_copy, require_file
from emollama.registry import nearest


def find_shipped(path: str, key: str) -> str:
    """The path if it is a file, else the package's copy of it, which is logged.

    Args:
        path: seen from the working folder. Only paths below the SHIPPED folders have a copy.
        key: the option or configuration key, for messages.

    Raises:
        UserError: neither exists; the message names both places.
    """
    copy = None if os.path.lexists(path) else packaged_copy(path)
    if copy is None:
        return require_file(path, key, "Correct the path." if os.path.exists(path) else _remedy(path, []))
    if copy.is_file():
        _log_copy(path, copy)
        return str(copy)
    folder = PACKAGE / copy.relative_to(PACKAGE).parts[0]
    names = sorted(str(file.relative_to(PACKAGE)) for file in folder.rglob(f"*{copy.suffix}") if file.is_file())
    raise UserError(
        f"{key}: no file '{path}', neither in the working folder ({os.getcwd()}) nor in the package ({copy})."
        f" {_remedy(path, names)} The package contains {abbreviated(names, where=f'all of them are in {folder}')}."
    )


def _remedy(path: str, names: list[str]) -> str:
    """A sentence with the file that was probably meant by a path: one beside it, or one of ``names``."""
    place = Path(path)
    beside = [str(file) for file in sorted(place.parent.glob(f"*{place.suffix}")) if file.is_file()]
    stems = {Path(name).stem: name for name in [*names, *beside]}
    near = nearest(place.stem, stems)
    return f"Did you mean '{stems[near]}'?" if near else "Correct the path."


@functools.cache
def _log_copy(path: str, copy: Path) -> None:
    """Log once in a process, on the first rank, that a packaged file is used; to standard error while there is no handler yet."""
    logger, text = logging.getLogger("emollama"), f"using the packaged copy of {path} ({copy.resolve()})"
    if os.environ.get("RANK", "0") != "0":
        return
    if logger.hasHandlers():
        logger.info("%s", text)
    elif logger.level <= logging.INFO and variables.LAUNCHER not in os.environ:  # --quiet; the launcher has printed it
        sys.stderr.write(f"{text}\n")

"""Look-up of the shipped configurations: files in the current directory, or else the package's copies."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path

from emollama import variables
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.paths import PACKAGE, packaged_copy, require_file, require_local
from emollama.suggestions import nearest


def find_shipped(path: str, key: str) -> str:
    """Return the path if it is a file, or else the package's copy of it. The use of a copy is logged.

    Args:
        path: a path relative to the current directory. Only paths below the SHIPPED folders have a copy.
        key: the option or configuration key, for messages.

    Raises:
        UserError: If neither exists, or the path is a URL. The message names both.
    """
    copy = None if os.path.lexists(require_local(path, key)) else packaged_copy(path)
    if copy is None:
        return require_file(path, key, "Correct the path." if os.path.exists(path) else _remedy(path, []))
    if copy.is_file():
        _log_copy(path, copy)
        return str(copy)
    folder = PACKAGE / copy.relative_to(PACKAGE).parts[0]
    names = sorted(str(file.relative_to(PACKAGE)) for file in folder.rglob(f"*{copy.suffix}") if file.is_file())
    raise UserError(
        f"{key}: no file '{path}', neither in the current directory ({os.getcwd()}) nor in the package ({copy})."
        f" {_remedy(path, names)} The package contains {abbreviated(names, where=f'all of them: {folder}')}."
    )


def _remedy(path: str, names: list[str]) -> str:
    """Return a sentence that suggests a file with a similar name: one in the same folder, or one of ``names``."""
    missing = Path(path)
    siblings = [str(file) for file in sorted(missing.parent.glob(f"*{missing.suffix}")) if file.is_file()]
    stems = {Path(name).stem: name for name in [*names, *siblings]}
    near = nearest(missing.stem, stems)
    return f"Did you mean '{stems[near]}'?" if near else "Correct the path."


@functools.cache
def _log_copy(path: str, copy: Path) -> None:
    """Log that a packaged file is used, once per process and on rank 0 only."""
    logger, text = logging.getLogger("emollama"), f"using the packaged copy of {path} ({copy.resolve()})"
    if os.environ.get("RANK", "0") != "0":
        return
    if logger.hasHandlers():
        logger.info("%s", text)
    # Configurations are read before logging is set up. With --quiet, the level is above INFO. In a worker process, the launcher
    # has already printed the line.
    elif logger.level <= logging.INFO and variables.LAUNCHER not in os.environ:
        sys.stderr.write(f"{text}\n")

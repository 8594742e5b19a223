"""The Python modules under ``imports``, which register a user's components."""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from typing import Any

from emollama.errors import UserError
from emollama.paths import PACKAGE

# The innermost line of a failure is often in one of these; the user's own line that led there says more.
LIBRARIES = tuple(f"{path}{os.sep}" for path in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), PACKAGE))


def check_imports(layer: str, value: Any) -> None:
    """Refuse a value of ``imports`` that is no list of module names.

    Args:
        layer: what messages call the layer.
        value: as it is configured.

    Raises:
        UserError: naming the layer and the entry.
    """
    if not isinstance(value, list):
        remedy = f" Write imports: [{value}]" if isinstance(value, str) else ""
        raise UserError(f"{layer}: 'imports' is a list of Python module names, not {value!r}.{remedy}")
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s./\\]+(\.[^\s./\\]+)*", name):
            raise UserError(
                f"{layer}: 'imports': {name!r} is no name of a Python module. Write package.module, seen from the working folder."
            )


def import_user_modules(names: Sequence[str]) -> None:
    """Import modules, so that they register their components; the working folder is searched last.

    Raises:
        UserError: one that cannot be imported, or ends the program; names the module, and the file and line.
    """
    if names and "" not in sys.path:
        sys.path.append("")
    for name in names:
        try:
            importlib.import_module(name)
        except SystemExit as error:
            called = f"sys.exit({'' if error.code is None else repr(error.code)})"
            text = "A module that is imported must not end the program."
            raise UserError(f"imports: '{name}' called {called} ({_place(error)}). {text}") from error
        except Exception as error:
            place = _place(error)
            kind = "" if isinstance(error, ImportError | UserError) else f"{type(error).__name__}: "
            text = error.msg if isinstance(error, SyntaxError) else str(error)
            hint = " Write it without '.py'." if isinstance(error, ModuleNotFoundError) and name.endswith(".py") else ""
            where = f"{place}: " if place else ""
            raise UserError(f"imports: cannot import '{name}': {where}{kind}{text.rstrip('.')}.{hint}") from error


def _place(error: BaseException) -> str:
    """Where a module failed: ``file, line n``, the innermost line outside the libraries; "" if no module's code has run."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen ")]
    frames = [frame for frame in frames if frame.filename != __file__ and not frame.filename.endswith("importlib/__init__.py")]
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""

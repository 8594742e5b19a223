"""Import of the Python modules under ``imports``, which register a user's components."""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from emollama.errors import UserError
from emollama.paths import PACKAGE

# The innermost line of a traceback is often in one of these folders. The user's own line that led there is more helpful.
LIBRARIES = tuple(f"{path}{os.sep}" for path in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), PACKAGE))


def check_imports(layer: str, value: Any) -> None:
    """Check that the value of ``imports`` is a list of module names.

    Args:
        layer: name of the layer in messages.
        value: the configured value.

    Raises:
        UserError: If it is not such a list. The message names the layer and the entry.
    """
    if not isinstance(value, list):
        remedy = f" Write imports: [{value}]" if isinstance(value, str) else ""
        raise UserError(f"{layer}: 'imports' must be a list of Python module names, not {value!r}.{remedy}")
    require_module_names(f"{layer}: 'imports'", value)


def require_module_names(key: str, names: Iterable[Any]) -> None:
    """Check that all names are those of Python modules; ``key`` is the key or option in messages.

    Raises:
        UserError: If one is not.
    """
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s./\\]+(\.[^\s./\\]+)*", name):
            remedy = "Write package.module, relative to the current directory."
            raise UserError(f"{key}: {name!r} is not the name of a Python module. {remedy}")


def import_user_modules(names: Sequence[str], key: str = "imports") -> None:
    """Import modules, which register their components on import.

    Args:
        names: names of modules, or of modules in the current directory.
        key: the key or option that lists them, for messages.

    Raises:
        UserError: If a module cannot be imported or exits. The message names the module, the file and the line.
    """
    # Appended rather than inserted: installed packages take precedence over modules in the current directory.
    if names and "" not in sys.path:
        sys.path.append("")
    for name in names:
        try:
            importlib.import_module(name)
        except SystemExit as error:
            called = f"sys.exit({'' if error.code is None else repr(error.code)})"
            text = "A module under imports must not exit."
            raise UserError(f"{key}: '{name}' called {called} ({_location(error)}). {text}") from error
        except Exception as error:
            location = _location(error)
            kind = "" if isinstance(error, ImportError | UserError) else f"{type(error).__name__}: "
            text = error.msg if isinstance(error, SyntaxError) else str(error)
            hint = " Write it without '.py'." if isinstance(error, ModuleNotFoundError) and name.endswith(".py") else ""
            hint = " Correct this line." if isinstance(error, SyntaxError) else hint
            where = f"{location}: " if location else ""
            raise UserError(f"{key}: cannot import '{name}': {where}{kind}{text.rstrip('.')}.{hint}") from error


def _location(error: BaseException) -> str:
    """Return ``file, line n`` of the innermost frame outside the libraries, or "" if no code of the module has run."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    # "<frozen importlib._bootstrap>", and "<string>" for the __init__ of a dataclass
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    frames = [frame for frame in frames if frame.filename != __file__ and not frame.filename.endswith("importlib/__init__.py")]
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""

"""Java programs in the folder of pycocoevalcap: checks whether they can run, and runs them. The folder is never written to."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from emollama.errors import UserError
from emollama.text_encoding import encodable

NEEDS_JAVA = "a Java runtime: install one (on Debian: apt install default-jre-headless), so that 'java' is on the PATH"
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")  # SPICE's parser; pycocoevalcap omits it
STDERR_SHOWN = 500  # characters of a program's output in messages
LIMIT = 20 * 60  # seconds


class JavaFailed(UserError):
    """A Java program failed."""


def java() -> str | None:
    """Return the path of the Java runtime; None if no runtime starts."""
    path = shutil.which("java")
    return path if path and _starts(path) else None


@cache
def _starts(path: str) -> bool:
    try:
        return subprocess.run([path, "-version"], capture_output=True).returncode == 0
    # The file may be a program for a different architecture.
    except OSError:
        return False


def folder_of(part: str) -> Path:
    """Return the folder of a part of pycocoevalcap: tokenizer, meteor, spice."""
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package pycocoevalcap, which computes caption metrics, is not installed: pip install pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations))) / part


def lacks_java() -> str | None:
    """Return what METEOR and the PTB tokenizer need that is missing; None if nothing is."""
    return None if java() else NEEDS_JAVA


def lacks_spice() -> str | None:
    """Return what SPICE needs that is missing; None if nothing is. Its models are not downloaded automatically."""
    folder = folder_of("spice") / "lib"
    missing = [name for name in MODELS if not (folder / name).is_file()]
    models = f"{' and '.join(missing)} in '{folder}': extract them from stanford-corenlp-full-2015-12-09.zip (nlp.stanford.edu)"
    return "; ".join(filter(None, (lacks_java(), models if missing else None))) or None


def run_java(what: str, arguments: Sequence[str], folder: Path, text: str = "") -> str:
    """Run a program and wait until it ends.

    Args:
        what: name of the program in messages.
        arguments: arguments of ``java``.
        folder: current directory of the process.
        text: standard input.

    Returns:
        The standard output.

    Raises:
        JavaFailed: If the program failed or exceeded the time limit, or Java does not start.
    """
    command = [java() or "java", "-Dfile.encoding=UTF-8", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, input=encodable(text).encode(), capture_output=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise JavaFailed(f"{what}: Java did not finish within {LIMIT / 60:g} minutes and was stopped.") from None
    except OSError as error:
        raise JavaFailed(f"{what}: Java does not start: {error.strerror}. {what} needs {NEEDS_JAVA}") from None
    if done.returncode:
        output = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[:STDERR_SHOWN]
        raise JavaFailed(f"{what} failed in Java (exit status {done.returncode}): {output}")
    return done.stdout.decode("utf-8", "replace")

"""Java programs in pycocoevalcap's folder: whether they can run here, and running them. Nothing is written into that folder."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from emollama.errors import UserError

NEEDS_JAVA = "a Java runtime: install one (on Debian: apt install default-jre-headless), so that 'java' is found on the PATH"
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")  # of SPICE's parser, which pycocoevalcap leaves out
TOLD = 500  # characters of a program's complaint
LIMIT = 20 * 60  # seconds that a program may take


class JavaFailed(UserError):
    """A Java program did not do its work."""


def java() -> str | None:
    """The Java runtime; None where there is none that starts."""
    found = shutil.which("java")
    return found if found and _starts(found) else None


@cache
def _starts(path: str) -> bool:
    try:
        return subprocess.run([path, "-version"], capture_output=True).returncode == 0
    except OSError:  # a file that is no program of this machine
        return False


def folder_of(part: str) -> Path:
    """pycocoevalcap's folder of a part: tokenizer, meteor, spice."""
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package pycocoevalcap, which scores captions, is not installed: pip install pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations))) / part


def lacks_java() -> str | None:
    """What METEOR and the PTB tokenizer would need; None where nothing is lacking."""
    return None if java() else NEEDS_JAVA


def lacks_spice() -> str | None:
    """What SPICE would need; None where nothing is lacking. Its models are never downloaded here."""
    place = folder_of("spice") / "lib"
    missing = [name for name in MODELS if not (place / name).is_file()]
    models = f"{' and '.join(missing)} in '{place}': take them out of stanford-corenlp-full-2015-12-09.zip (nlp.stanford.edu)"
    return "; ".join(filter(None, (lacks_java(), models if missing else None))) or None


def run_java(what: str, arguments: Sequence[str], folder: Path, text: str = "") -> str:
    """Run a program to its end.

    Args:
        what: it is called in messages.
        arguments: of ``java``.
        folder: it runs in.
        text: on its standard input.

    Returns:
        What it wrote on its standard output.

    Raises:
        JavaFailed: it ended with an error or not in time, or there is no Java.
    """
    command = [java() or "java", "-Dfile.encoding=UTF-8", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, input=text.encode("utf-8", "replace"), capture_output=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise JavaFailed(f"{what}: Java did not end within {LIMIT / 60:g} minutes and was stopped.") from None
    except OSError as error:
        raise JavaFailed(f"{what}: Java does not start: {error.strerror}. It needs {NEEDS_JAVA}") from None
    if done.returncode:
        told = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[:TOLD]
        raise JavaFailed(f"{what} failed in Java (exit status {done.returncode}): {told}")
    return done.stdout.decode("utf-8", "replace")

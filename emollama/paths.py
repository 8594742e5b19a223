"""The one way to files: local paths, and whatever else is registered with iopath's path manager."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from emollama import variables
from emollama.errors import UserError

if TYPE_CHECKING:
    from iopath.common.file_io import PathManager


@functools.cache
def _path_manager() -> PathManager:
    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    return manager


class _Paths:
    """iopath's path manager, which is imported when it is used: many commands only need the other functions of this module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_path_manager(), name)


PATHS = _Paths()

PACKAGE = Path(__file__).parent
SHIPPED = ("train_configs", "eval_configs")  # folders of configurations that the package contains


def join(root: str | None, path: str) -> str:
    """``path`` seen from ``root``; an absolute path, a URL, or no root leaves it as it is."""
    return os.path.join(root, path) if root and "://" not in path else path


def data_folder_hint(path: str | os.PathLike[str]) -> str:
    """A sentence (with a leading space) about EMOLLAMA_DATA for a path below that folder; "" for any other path.

    The shipped configurations take ``paths.root`` from that variable, and ``data`` where it is not set.
    """
    root = os.environ.get(variables.DATA)
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root or "data")):
        return ""
    if not root:
        return (
            f" {variables.DATA}, the environment variable with the folder of your data, is not set, so it is 'data' in the"
            f" working folder. Set it: export {variables.DATA}=FOLDER."
        )
    missing = "" if os.path.isdir(root) else ", which does not exist"
    return f" The folder of your data is '{root}'{missing}: the environment variable {variables.DATA} names it."


def not_found(key: str, path: str | os.PathLike[str], remedy: str = "Correct the path.", *, what: str = "file") -> UserError:
    """The error for a path that does not exist.

    Args:
        key: the option or configuration key that named the path.
        path: the path.
        remedy: a sentence.
        what: file or folder.
    """
    return UserError(f"{key}: no {what} '{os.fspath(path)}' (seen from {os.getcwd()}).{data_folder_hint(path)} {remedy}")


def not_a_file(key: str, path: str | os.PathLike[str], remedy: str = "Correct the path.") -> UserError:
    """The error for a path that is no regular file: it does not exist, or what it is instead; arguments as :func:`not_found`."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        link = f" (a symbolic link to '{os.readlink(path)}')" if os.path.islink(path) else ""
        if not link and getattr(error, "errno", None) in (None, errno.ENOENT, errno.ENOTDIR):
            return not_found(key, path, remedy)
        return UserError(f"{key}: cannot read '{os.fspath(path)}'{link}: {getattr(error, 'strerror', error)}. {remedy}")
    kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
    return UserError(f"{key}: '{os.fspath(path)}' is {kind}. Name a regular file.")


def looked_up(look: Callable[[str], bool], path: str, key: str) -> bool:
    """``PATHS.isfile(path)`` or ``PATHS.isdir(path)``; a URL is a user error, because iopath cannot look there."""
    try:
        return look(path)
    except NotImplementedError:
        raise UserError(f"{key}: '{path}' is a URL. Download it, and name the copy on this machine.") from None


def require_folder(path: str, key: str, remedy: str = "Correct the path.") -> str:
    """The path, if it is a folder.

    Raises:
        UserError: naming the configuration key.
    """
    if not looked_up(PATHS.isdir, path, key):
        raise not_found(key, path, remedy, what="folder")
    return path


def require_file(path: str, key: str, remedy: str = "Correct the path.") -> str:
    """The path, if it is a file.

    Raises:
        UserError: naming the configuration key.
    """
    if not looked_up(PATHS.isfile, path, key):
        raise not_a_file(key, path, remedy)
    return path


def packaged_copy(path: str) -> Path | None:
    """Where the package has its copy of a relative path below one of the SHIPPED folders; None for any other path."""
    parts = Path(os.path.normpath(path)).parts
    return PACKAGE.joinpath(*parts) if len(parts) > 1 and parts[0] in SHIPPED else None


def read_text(path: str) -> str:
    """The whole file as UTF-8 text (a byte order mark is dropped).

    Raises:
        UserError: the file is not UTF-8, with the offending byte's position.
    """
    with PATHS.open(path, "rb") as file:
        raw = file.read()
    try:
        return str(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None


def require_utf8(path: str, key: str) -> str:
    """The path, if it is text: a name with other bytes cannot be written to a YAML or JSON file.

    Raises:
        UserError: naming the option or configuration key.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{key}: the name '{path}' is not UTF-8. Rename it, or name another one.") from None
    return path


def new_job_id() -> str:
    """The name of a run's folder without ``run.job_id``: the one that the command has chosen, else the time."""
    return os.environ.get(variables.JOB_ID) or datetime.now().strftime("%Y%m%d%H%M%S")


def require_writable(folder: Path, key: str) -> None:
    """Check that files can be written under a folder, which need not exist yet; nothing is left behind.

    Raises:
        UserError: naming the configuration key.
    """
    existing = folder
    try:
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))
        with tempfile.TemporaryFile(dir=existing):
            pass
        folder.is_dir()  # a name may be too long
    except OSError as error:
        raise UserError(f"{key}: cannot write under '{existing}': {error.strerror}. Name another folder.") from None


@contextmanager
def written_whole(path: str | Path, mode: str = "w", *, lasting: bool = True) -> Iterator[IO[Any]]:
    """Write a file so that it is there completely or not at all: a temporary name, flushed to disk, then renamed.

    Args:
        path: its folder is made if need be.
        mode: as for ``open``.
        lasting: False does not wait for the disk: after a power cut the file may be spoiled, which its reader must notice.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "") as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def restore_permissions(*paths: Path) -> None:
    """Give files the permissions of a file that ``open`` creates beside them.

    Some libraries write to a private temporary file (mode 0600) and rename it. An empty file shows what the umask and the
    folder's default access list allow; reading the umask itself is not thread-safe.
    """
    for folder in {path.parent for path in paths}:
        probe = folder / f".permissions.tmp{os.getpid()}"
        probe.touch()
        mode = probe.stat().st_mode & 0o777
        probe.unlink()
        for path in paths:
            if path.parent == folder:
                path.chmod(mode)


def cache_folder() -> Path:
    """The user's cache folder for this project, ``$XDG_CACHE_HOME/emollama`` or ``~/.cache/emollama``; it need not exist.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emollama"


def require_new(output: str | Path, sources: Iterable[str | Path] = (), key: str = "--output") -> Path:
    """Where a new folder goes.

    Args:
        output: not there yet, or an empty folder.
        sources: folders that are only read; the output must not lie in one.
        key: the option or configuration key of the output, for messages.

    Raises:
        UserError: something lies there, it lies in a source, or nothing can be written there.
    """
    place = Path(output).resolve()
    if os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{key}: '{output}' exists already and is not an empty folder. Name a new one.")
    for source in sources:
        if place.is_relative_to(Path(source).resolve()):
            raise UserError(f"{key}: '{output}' lies in the source '{source}', which is not changed. Name another folder.")
    require_writable(place, key)
    return place


def require_new_file(output: str) -> Path:
    """Where a new file goes.

    Raises:
        UserError: something is there already.
    """
    place = Path(os.path.abspath(output))
    if os.path.lexists(place):
        kind = "a folder. Name a file." if place.is_dir() else "there already. Name another place, or delete it."
        raise UserError(f"--output: '{output}' is {kind}")
    return place


@contextmanager
def new_folder(output: str | Path, sources: Iterable[str | Path] = (), key: str = "--output") -> Iterator[Path]:
    """Write a folder so that it is there completely or not at all: a temporary name, flushed to disk, then renamed.

    Args:
        output, sources, key: as :func:`require_new`.

    Raises:
        UserError: as :func:`require_new`; the disk refuses (full, read-only).
    """
    place = require_new(output, sources, key)
    temporary = place.with_name(f"{unfinished(place)}{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        os.replace(temporary, place)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{key}: cannot write '{output}': {reason}. Make room, or name another folder.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unfinished(place: Path) -> str:
    """How the names of folders begin that :func:`new_folder` is writing for a place, or was when it was killed."""
    return f".{place.name}.tmp"


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with PATHS.open(str(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Access to files and folders: path checks with user errors, and atomic writing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from emollama import disk, variables
from emollama.errors import DownloadError, UserError
from emollama.remote.manager import PATHS as PATHS
from emollama.remote.manager import cache_folder as cache_folder
from emollama.remote.manager import is_remote, local_copy, require_handler
from emollama.text_encoding import not_utf8

PACKAGE = Path(__file__).parent
SHIPPED = ("train_configs", "eval_configs")  # folders of configurations that the package contains


def join(root: str | None, path: str) -> str:
    """Join ``path`` to ``root``. An absolute path or a URL is returned unchanged, and so is any path if ``root`` is empty."""
    return os.path.join(root, path) if root and "://" not in path else path


def extension(path: str) -> str:
    """Return the extension of a path or URL in lower case, such as ``.csv``; the query of a URL is not a part of it."""
    return os.path.splitext(urlsplit(path).path if is_remote(path) else path)[1].lower()


def data_folder_hint(path: str | os.PathLike[str]) -> str:
    """Return a sentence (with a leading space) about EMOLLAMA_DATA for a path below that folder, "" for any other path.

    The shipped configurations read ``paths.root`` from that variable. If it is not set, they use ``data``.
    """
    root = os.environ.get(variables.DATA)
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root or "data")):
        return ""
    if not root:
        return (
            f" The environment variable {variables.DATA} (the folder of your data) is not set, so 'data' in the current directory"
            f" is used. To set it: export {variables.DATA}=FOLDER."
        )
    missing = "" if os.path.isdir(root) else ", which does not exist"
    return f" The environment variable {variables.DATA} sets the folder of your data to '{root}'{missing}."


def not_found(key: str, path: str | os.PathLike[str], remedy: str = "Correct the path.", *, what: str = "file") -> UserError:
    """Return the error for a path that does not exist.

    Args:
        key: the option or configuration key that contains the path.
        path: the path.
        remedy: a sentence that says how to fix the error.
        what: "file" or "folder".
    """
    return UserError(f"{key}: no {what} '{os.fspath(path)}' (current directory: {os.getcwd()}).{data_folder_hint(path)} {remedy}")


def not_a_file(key: str, path: str | os.PathLike[str], remedy: str = "Correct the path.") -> UserError:
    """Return the error for a path that does not exist or is not a regular file; the arguments are those of :func:`not_found`."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        link = f" (a symbolic link to '{os.readlink(path)}')" if os.path.islink(path) else ""
        if not link and getattr(error, "errno", None) in (None, errno.ENOENT, errno.ENOTDIR):
            return not_found(key, path, remedy)
        what = disk.remedy(error) if getattr(error, "errno", None) in disk.REMEDIES else remedy
        return UserError(f"{key}: cannot read '{os.fspath(path)}'{link}: {getattr(error, 'strerror', error)}. {what}")
    kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
    return UserError(f"{key}: '{os.fspath(path)}' is {kind}. Specify a regular file.")


def path_exists(look: Callable[[str], bool], path: str, key: str) -> bool:
    """Return ``look(path)``, where ``look`` is ``PATHS.isfile`` or ``PATHS.isdir``; raise a UserError if it cannot be checked."""
    try:
        return look(path)
    except NotImplementedError:
        raise UserError(f"{key}: '{path}' is a URL. Download the file and name the local copy.") from None
    except DownloadError as error:
        raise UserError(f"{key}: {error}") from None


def require_local(path: str, key: str, what: str = "file") -> str:
    """Return the path of a file or folder that cannot be remote.

    Raises:
        UserError: If the path is a URL. The message names the configuration key.
    """
    if is_remote(path):
        raise UserError(f"{key}: '{path}' is a URL. Download the {what} and name the local copy.")
    return path


def require_folder(
    path: str, key: str, remedy: str = "Correct the path.", *, if_remote: str = "Download the folder and name the local copy."
) -> str:
    """Return the path of an existing folder.

    Args:
        path: the path.
        key: the option or configuration key that contains the path.
        remedy: a sentence that says what to do if there is no folder.
        if_remote: the same for a folder at a remote location, which only provides single files.

    Raises:
        UserError: If the folder does not exist. The message names the configuration key.
    """
    if is_remote(path):
        require_handler(path, key)
    try:
        exists = PATHS.isdir(path)
    except NotImplementedError:
        raise UserError(f"{key}: '{path}' is not a single file, and folders cannot be read from a URL. {if_remote}") from None
    if not exists:
        with suppress(ValueError):  # a name with a null character
            disk.require_accessible(path, key)
        raise not_found(key, path, remedy, what="folder")
    disk.require_readable(path, key)
    return path


def require_file(path: str, key: str, remedy: str = "Correct the path.") -> str:
    """Return the path of an existing file. A remote file is downloaded.

    Raises:
        UserError: If the file does not exist or cannot be downloaded. The message names the configuration key.
    """
    if is_remote(path):
        local_copy(path, key)
    elif not PATHS.isfile(path):
        raise not_a_file(key, path, remedy)
    disk.require_readable(path, key)
    return path


def packaged_copy(path: str) -> Path | None:
    """Return the package's copy of a relative path below one of the SHIPPED folders, None for any other path."""
    parts = Path(os.path.normpath(path)).parts
    return PACKAGE.joinpath(*parts) if len(parts) > 1 and parts[0] in SHIPPED else None


def read_text(path: str) -> str:
    """Read a whole file as UTF-8 text, without its byte order mark.

    Raises:
        UserError: If the file is not UTF-8. The message contains line and value of the first invalid byte, and a remedy.
    """
    with PATHS.open(path, "rb") as file:
        raw = file.read()
    try:
        return str(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, raw, error.start) from None


def require_utf8(path: str, key: str) -> str:
    """Return the path, which must be valid UTF-8: other names cannot be written to YAML and JSON files.

    Raises:
        UserError: If the path is not UTF-8. The message names the option or configuration key.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{key}: the name '{path}' is not UTF-8. Rename it, or use another path.") from None
    return path


def require_writable(folder: Path, key: str) -> None:
    """Check that files can be written to a folder, which may not exist yet. The check leaves no files behind.

    Raises:
        UserError: If nothing can be written there. The message names the configuration key.
    """
    existing = folder
    try:
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))
        with tempfile.TemporaryFile(dir=existing):
            pass
        # Raises if a name is too long.
        folder.is_dir()
    except OSError as error:
        raise UserError(
            f"{key}: cannot write under '{existing}': {error.strerror}. {disk.remedy(error, 'specify another folder')}"
        ) from None


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a file for writing that appears only when it is complete: it is written under a temporary name, then renamed.

    Args:
        path: the file. Its folder is created if it does not exist.
        mode: as for ``open``.
        durable: wait until the content is on disk. Without it, a power failure may leave a damaged file; the reader must check.

    Raises:
        OSError: If the file cannot be written. The error's ``filename`` is the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with disk.with_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def require_new(output: str | Path, sources: Iterable[str | Path] = (), key: str = "--output") -> Path:
    """Check that a new folder can be created, and return its absolute path.

    Args:
        output: the folder, which must not exist or must be empty.
        sources: folders that are only read; the output must not be inside one of them.
        key: the option or configuration key of the output, for messages.

    Raises:
        UserError: If the output exists and is not an empty folder, is inside a source, or cannot be written.
    """
    folder = Path(output).resolve()
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{key}: '{output}' already exists and is not an empty folder. Specify a new folder.")
    for source in sources:
        if folder.is_relative_to(Path(source).resolve()):
            raise UserError(f"{key}: '{output}' is inside the source '{source}', which is read-only. Specify another folder.")
    require_writable(folder, key)
    return folder


def require_new_file(output: str) -> Path:
    """Check that a file does not exist, and return its absolute path.

    Raises:
        UserError: If the path exists.
    """
    path = Path(os.path.abspath(output))
    if os.path.lexists(path):
        problem = "is a folder. Specify a file." if path.is_dir() else "already exists. Specify another file, or delete this one."
        raise UserError(f"--output: '{output}' {problem}")
    return path


@contextmanager
def new_folder(output: str | Path, sources: Iterable[str | Path] = (), key: str = "--output") -> Iterator[Path]:
    """Create a folder that appears only when it is complete: its files are written under a temporary name, then renamed.

    Args:
        output: as in :func:`require_new`.
        sources: as in :func:`require_new`.
        key: as in :func:`require_new`.

    Raises:
        UserError: If :func:`require_new` raises it, or if writing fails, for example because the disk is full.
    """
    folder = require_new(output, sources, key)
    temporary = folder.with_name(f"{temporary_prefix(folder)}{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        os.replace(temporary, folder)
    except OSError as error:
        # Errors of other files, such as one that is copied, have their own path.
        if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(temporary):
            raise
        text = f"{key}: cannot write '{output}': {disk.reason(error)}. {disk.remedy(error, 'specify another folder')}"
        raise UserError(text) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_prefix(path: Path) -> str:
    """Return the prefix of temporary names for a path; such files are being written or were left by a killed process."""
    return f".{path.name}.tmp"


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with PATHS.open(str(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

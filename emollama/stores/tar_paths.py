"""Paths that mean tar shards: which shards they name, and which of their arrays."""

from __future__ import annotations

import os
import re
from pathlib import Path

from braceexpand import braceexpand

from emollama.errors import FileAbsent, UserError
from emollama.paths import PATHS
from emollama.remote.manager import is_remote
from emollama.stores import tar_index

_TAR = (".tar", ".tar.gz", ".tgz")


def is_tar_path(path: str) -> bool:
    """Return whether a path means tar shards: a tar, or a folder that contains tars or their indexes but no .npy files."""
    pattern, _ = split_slot(path)
    if pattern.endswith(_TAR):
        return True
    names = _list_folder(pattern)
    return any(name.endswith((*_TAR, tar_index.SUFFIX)) for name in names) and not any(name.endswith(".npy") for name in names)


def split_slot(path: str) -> tuple[str, str | None]:
    """Split ``shards.tar::face`` into ("shards.tar", "face"); the slot is None if there is no ``::``."""
    match = re.fullmatch(r"(.*)::([^/:\]]*)", path, re.DOTALL)
    return (match[1], match[2]) if match else (path, None)


def list_shards(pattern: str) -> list[str]:
    """Return the tars of a path without a slot, in order; for a folder without tars, the indexes.

    Raises:
        UserError: If there are no tars, the braces in the path are not closed, or a URL contains ``*``.
    """
    if names := sorted(_list_folder(pattern)):
        for extension in (".tar", tar_index.SUFFIX, *_TAR):
            if shards := [os.path.join(pattern, name) for name in names if name.endswith(extension)]:
                return shards
    if os.path.exists(pattern):
        return [pattern]
    try:
        expanded = list(braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError:
        raise UserError(f"{pattern}: the braces are not closed. Correct the path.") from None
    if is_remote(pattern) and "*" in pattern:
        raise UserError(f"{pattern}: a URL cannot contain '*'. List the tars with braces, as in shard-{{00000..00003}}.tar.")
    shards = [shard for part in expanded for shard in (_glob(part) if "*" in part else [part])]
    if not shards:
        raise UserError(f"no tar '{pattern}' (current directory: {os.getcwd()}). Correct the path.")
    return shards


def is_local(shard: str) -> bool:
    """Return whether a shard is on this machine rather than at a remote location.

    Raises:
        UserError: If the file does not exist. At some remote locations, this cannot be checked.
    """
    if os.path.isfile(shard):
        return True
    try:
        exists = PATHS.isfile(shard)
    except NotImplementedError:
        # iopath cannot check whether a file exists at this remote location.
        exists = True
    if not exists and is_remote(shard):
        raise FileAbsent(f"'{shard}': there is no such file. Correct the URL, or upload the file.")
    if not exists:
        raise UserError(f"no tar '{shard}' (current directory: {os.getcwd()}). Correct the path.")
    return False


def _list_folder(path: str) -> list[str]:
    """Return the names of the files in a folder; an empty list if it does not exist."""
    try:
        return list(PATHS.ls(path)) if PATHS.isdir(path) else []
    except (NotImplementedError, PermissionError):
        # iopath cannot list this remote location, or a later check reports the permissions with the configuration key.
        return []


def _glob(pattern: str) -> list[str]:
    folder, name = os.path.split(pattern)
    return sorted(map(str, Path(folder).glob(name)))

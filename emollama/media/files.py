"""Which file is a clip's video."""

from __future__ import annotations

import os
from pathlib import Path

from emollama.errors import UserError
from emollama.paths import require_folder

ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".m4v")


def find_videos(folder: str | os.PathLike[str], key: str) -> dict[str, Path]:
    """Clip -> video, of all videos anywhere below a folder, sorted by path; hidden files and links to folders are passed over.

    A clip's name is its path below the folder, without the ending.

    Args:
        folder: to look through.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: no such folder, one that cannot be read, no video below it, or two videos of one name.
    """
    require_folder(os.fspath(folder), key)

    def unread(error: OSError) -> None:
        raise UserError(f"{key}: the folder '{error.filename}' cannot be read ({error.strerror}). Correct its permissions.")

    videos: dict[str, Path] = {}
    for root, folders, files in os.walk(folder, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(files) if not name.startswith(".")):
            if path.suffix.lower() in ENDINGS:
                name = path.relative_to(folder).with_suffix("").as_posix()
                if (same := videos.setdefault(name, path)) != path:
                    raise UserError(f"{key}: '{name}' is the name of two videos, {same} and {path}. Rename one of them.")
    if not videos:
        raise UserError(f"{key}: no video anywhere below '{os.fspath(folder)}' (endings: {' '.join(ENDINGS)})")
    return videos


def find_video(folder: str | os.PathLike[str], name: str) -> Path | None:
    """The video of a clip, or None.

    Args:
        folder: of the videos.
        name: the clip's, which may hold folders. Of several videos the one whose ending comes first in :data:`ENDINGS` is taken;
            endings may be in capitals.
    """
    for ending in ENDINGS:
        for path in (Path(folder, name + ending), Path(folder, name + ending.upper())):
            if path.is_file():
                return path
    return None

"""The video files of clips."""

from __future__ import annotations

import os
from pathlib import Path

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.paths import require_folder

EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".m4v")


def find_videos(folder: str | os.PathLike[str], key: str) -> dict[str, Path]:
    """Find all videos in a folder and its subfolders; hidden files and links to folders are skipped.

    Args:
        folder: the folder.
        key: the configuration key that named the folder, for messages.

    Returns:
        Clip name -> path of the video, sorted by path. The name is the path below the folder, without the extension.

    Raises:
        UserError: If a folder does not exist or cannot be read, there is no video, or two videos have the same name.
    """
    require_folder(os.fspath(folder), key)

    def raise_unreadable(error: OSError) -> None:
        raise UserError(f"{key}: cannot read the folder '{error.filename}' ({error.strerror}). {remedy(error)}")

    videos: dict[str, Path] = {}
    for root, folders, files in os.walk(folder, onerror=raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(files) if not name.startswith(".")):
            if path.suffix.lower() in EXTENSIONS:
                name = path.relative_to(folder).with_suffix("").as_posix()
                if (other := videos.setdefault(name, path)) != path:
                    raise UserError(f"{key}: '{name}' is the name of two videos, {other} and {path}. Rename one of them.")
    if not videos:
        raise UserError(
            f"{key}: no video in '{os.fspath(folder)}' or its subfolders; accepted extensions: {' '.join(EXTENSIONS)}"
        )
    return videos


def find_video(folder: str | os.PathLike[str], name: str) -> Path | None:
    """Return the path of a clip's video, or None.

    Args:
        folder: the folder of the videos.
        name: the clip's name, which may contain folders. If there are several videos, the one with the first extension in
            :data:`EXTENSIONS` is returned. Extensions may be in upper case.
    """
    for extension in EXTENSIONS:
        for path in (Path(folder, name + extension), Path(folder, name + extension.upper())):
            if path.is_file():
                return path
    return None

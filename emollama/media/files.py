"""The video files of clips."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from emollama.disk import remedy
from emollama.errors import UserError
from emollama.listing import listing
from emollama.paths import require_folder

# Containers with a video track that FFmpeg reads, the most common ones first. The case of a name does not matter.
EXTENSIONS = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".m4v", ".ts", ".mts", ".m2ts", ".m2t", ".3gp",
    ".3g2", ".ogv", ".asf", ".f4v", ".vob", ".mxf", ".mpe", ".m2v", ".mk3d", ".mj2", ".qt", ".dv", ".divx", ".rm", ".rmvb",
    ".wtv", ".nut", ".y4m",
)  # fmt: skip


class VideoFiles(NamedTuple):
    """The files of a folder and its subfolders.

    Attributes:
        videos: clip name -> path of the video, sorted by path. The name is the path below the folder, without the extension.
        others: paths of the files that have none of :data:`EXTENSIONS`.
    """

    videos: dict[str, Path]
    others: list[Path]


def not_videos(paths: Iterable[Path]) -> str:
    """Return the number of files that are not videos and their names, for a log line."""
    return f"{listing(map(str, paths), 'file')} (extensions of videos: {' '.join(EXTENSIONS)})"


def find_videos(folder: str | os.PathLike[str], key: str) -> VideoFiles:
    """Find all videos in a folder and its subfolders; hidden files and links to folders are skipped.

    Args:
        folder: the folder.
        key: the configuration key that named the folder, for messages.

    Raises:
        UserError: If a folder does not exist or cannot be read, there is no video, or two videos have the same name.
    """
    require_folder(os.fspath(folder), key)

    def raise_unreadable(error: OSError) -> None:
        raise UserError(f"{key}: cannot read the folder '{error.filename}' ({error.strerror}). {remedy(error)}")

    videos: dict[str, Path] = {}
    others: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(files) if not name.startswith(".")):
            if path.suffix.lower() not in EXTENSIONS:
                others.append(path)
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if (other := videos.setdefault(name, path)) != path:
                raise UserError(f"{key}: '{name}' is the name of two videos, {other} and {path}. Rename one of them.")
    if not videos:
        content = f"; it contains {not_videos(others)}" if others else f"; accepted extensions: {' '.join(EXTENSIONS)}"
        raise UserError(f"{key}: no video in '{os.fspath(folder)}' or its subfolders{content}")
    return VideoFiles(videos, others)


def find_video(folder: str | os.PathLike[str], name: str) -> Path | None:
    """Return the path of a clip's video, or None.

    Args:
        folder: the folder of the videos.
        name: the clip's name, which may contain folders. If there are several videos, the one with the first extension in
            :data:`EXTENSIONS` is returned. The case of an extension does not matter.
    """
    path = Path(folder, name)
    try:
        return _videos_by_stem(str(path.parent), os.stat(path.parent).st_mtime_ns).get(path.name)
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _videos_by_stem(folder: str, mtime_ns: int) -> dict[str, Path]:
    """Return name without extension -> video in a folder, which is listed again when its time of modification changes."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if Path(entry.name).suffix.lower() in EXTENSIONS and entry.is_file()]
    # Of several videos, the last one in this order remains.
    names.sort(key=lambda name: (EXTENSIONS.index(Path(name).suffix.lower()), Path(name).suffix.isupper(), name), reverse=True)
    return {Path(name).stem: Path(folder, name) for name in names}

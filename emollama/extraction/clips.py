"""Which clips are to be extracted, and where the video of each lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emollama.data.annotations import read_annotations, read_clip_table, safe_name
from emollama.errors import UserError
from emollama.listing import listing
from emollama.media.files import find_video, find_videos
from emollama.media.frame_selection import read_peaks
from emollama.media.source import Source
from emollama.paths import require_folder

LONGEST = 230  # bytes of a part of a name; file systems allow 255, endings included


@dataclass(frozen=True)
class Clips:
    """What is to be extracted.

    Attributes:
        sources: the clips that have a video, by name.
        absent: listed names without one.
    """

    sources: dict[str, Source]
    absent: list[str]


def find_clips(cfg: Any) -> Clips:
    """The clips of a list, or of a whole folder.

    Args:
        cfg: the ``extraction`` block.

    Raises:
        UserError: no such folder, list or peaks; a name that no file can have; a list none of whose clips has a video.
    """
    if cfg.face_path is not None:
        require_folder(cfg.face_path, "extraction.face_path")
    peaks = read_peaks(cfg.peak_index_path) if cfg.peak_index_path is not None else {}
    videos, absent = _listed(cfg) if cfg.annotation_file is not None else (find_videos(cfg.videos, "extraction.videos"), [])
    _refuse_unusable([*videos, *absent], cfg)
    faces = Path(cfg.face_path) if cfg.face_path is not None else None
    return Clips({name: Source(name, path, faces, peaks.get(name)) for name, path in videos.items()}, absent)


def _listed(cfg: Any) -> tuple[dict[str, Path], list[str]]:
    """The listed clips that have a video, and the names of the others."""
    path = cfg.annotation_file
    clips = read_clip_table(path, None) if path.lower().endswith(".csv") else read_annotations(path)
    require_folder(cfg.videos, "extraction.videos")
    found = {clip.name: find_video(Path(cfg.videos), clip.name) for clip in clips}
    videos = {name: video for name, video in found.items() if video is not None}
    if not videos:
        text = f"none of the {len(found)} clips of {path} has a video in extraction.videos '{cfg.videos}',"
        raise UserError(f"{text} such as {next(iter(found))}.mp4. Correct a path, or the names, which have no endings.")
    return videos, [name for name in found if name not in videos]


def _refuse_unusable(names: list[str], cfg: Any) -> None:
    """Names that no array can be called after, all told at once."""
    bad = [repr(name) for name in names if not _is_usable(name)]
    if bad:
        text = (
            f"{cfg.annotation_file or cfg.videos}: no file of features can be called after the clips {listing(bad)}. Rename them:"
        )
        raise UserError(f"{text} UTF-8, no backslash, no control character, at most {LONGEST} bytes between slashes.")


def _is_usable(name: str) -> bool:
    try:
        return max(len(part.encode()) for part in safe_name(name).split("/")) <= LONGEST
    except ValueError:  # unsafe, or not to be written in UTF-8
        return False

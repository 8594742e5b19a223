"""Find the clips to extract and their videos."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emollama.data.annotations import read_annotations, read_clip_table, safe_name
from emollama.errors import UserError
from emollama.listing import listing
from emollama.media.files import find_video, find_videos
from emollama.media.frame_selection import read_peaks
from emollama.media.source import Source
from emollama.paths import extension, require_folder

MAX_NAME_BYTES = 230  # per part of a path; file systems allow 255 bytes, including the extension


@dataclass(frozen=True)
class Clips:
    """The clips to extract.

    Attributes:
        sources: clip name -> video, for the clips that have a video.
        absent: names of listed clips that have no video.
        ignored: files in the folder of videos that are not videos; empty if the clips are listed in an annotation file.
    """

    sources: dict[str, Source]
    absent: list[str]
    ignored: list[Path] = field(default_factory=list)


def find_clips(cfg: Any) -> Clips:
    """Find the clips of an annotation file, or all videos of a folder.

    Args:
        cfg: the ``extraction`` block.

    Raises:
        UserError: If a folder or file does not exist, a clip name cannot be a file name, or none of the listed clips has a video.
    """
    if cfg.face_path is not None:
        require_folder(cfg.face_path, "extraction.face_path")
    peaks = read_peaks(cfg.peak_index_path) if cfg.peak_index_path is not None else {}
    absent: list[str] = []
    ignored: list[Path] = []
    if cfg.annotation_file is not None:
        videos, absent = _listed_videos(cfg)
    else:
        videos, ignored = find_videos(cfg.videos, "extraction.videos")
    _require_usable_names([*videos, *absent], cfg)
    faces = Path(cfg.face_path) if cfg.face_path is not None else None
    return Clips({name: Source(name, path, faces, peaks.get(name)) for name, path in videos.items()}, absent, ignored)


def _listed_videos(cfg: Any) -> tuple[dict[str, Path], list[str]]:
    """Return clip name -> video for the listed clips that have a video, and the names of the other listed clips."""
    path = cfg.annotation_file
    clips = read_clip_table(path, None) if extension(path) == ".csv" else read_annotations(path)
    require_folder(cfg.videos, "extraction.videos")
    candidates = {clip.name: find_video(Path(cfg.videos), clip.name) for clip in clips}
    videos = {name: video for name, video in candidates.items() if video is not None}
    if not videos:
        text = f"none of the {len(candidates)} clips of {path} has a video in extraction.videos '{cfg.videos}',"
        raise UserError(f"{text} such as {next(iter(candidates))}.mp4. Correct a path, or write the names without extensions.")
    return videos, [name for name in candidates if name not in videos]


def _require_usable_names(names: list[str], cfg: Any) -> None:
    """Check that the clip names can be file names of arrays; report all unusable names in one error."""
    unusable = [repr(name) for name in names if not _is_usable(name)]
    if unusable:
        text = (
            f"{cfg.annotation_file or cfg.videos}: clip names must be valid file names, got {listing(unusable, 'invalid name')}."
        )
        rule = f"at most {MAX_NAME_BYTES} bytes between slashes"
        raise UserError(f"{text} Rename them: UTF-8, no backslash, no control character, {rule}.")


def _is_usable(name: str) -> bool:
    try:
        return max(len(part.encode()) for part in safe_name(name).split("/")) <= MAX_NAME_BYTES
    except ValueError:  # outside the folder, or not UTF-8
        return False

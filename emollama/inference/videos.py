"""The videos of requests: checks, names, and the encoders that are configured for them."""

from __future__ import annotations

import dataclasses
import filecmp
import os
from collections.abc import Sequence, Set
from pathlib import Path

from emollama.component_configs import ExtractorConfig
from emollama.config import RunConfig
from emollama.data.annotations import safe_name
from emollama.errors import UserError
from emollama.extraction.clips import Clips
from emollama.extraction.configs import VideoExtractionConfig
from emollama.extraction.jobs import Job, describe_encoders, plan_jobs, require_weights
from emollama.inference.prediction_block import prediction_blocks
from emollama.listing import abbreviated
from emollama.media.files import find_video
from emollama.media.frame_selection import read_peaks
from emollama.media.frames import probe
from emollama.media.source import Source, UnusableMedia
from emollama.paths import data_folder_hint

UNNAMED = "(another video)"  # a name without a peak frame and face images


def require_videos(videos: Sequence[str]) -> None:
    """Open each video once.

    Raises:
        UserError: If videos do not exist or cannot be read. The message lists all of them.
    """
    if problems := [problem for video in videos if (problem := _problem(video))]:
        raise UserError(f"--video: {abbreviated(problems, '; ').rstrip('.')}.")


class VideoSources:
    """Describes videos as the configured extraction would: by their names, face images and most expressive frames.

    Args:
        config: the resolved configuration.

    Raises:
        UserError: If the file of ``extraction.peak_index_path`` cannot be read.
    """

    def __init__(self, config: RunConfig) -> None:
        cfg = _settings(config, "")
        self._videos = Path(cfg.videos)
        self._peaks = read_peaks(cfg.peak_index_path) if cfg.peak_index_path is not None else {}
        self._faces = Path(cfg.face_path) if cfg.face_path is not None else None

    def source(self, video: str | os.PathLike[str]) -> Source:
        """Describe a video.

        A video in the folder of ``extraction.videos`` has the name that the extraction uses, because a random frame selection
        depends on the name. Any other one has its file name, so that a user can add its peak frame and its face images, unless
        this is the name of a clip with other content, whose peak frame and face images must not be used.
        """
        path = Path(video).absolute()
        name = _name(path, self._videos)
        clip = None if name is None else find_video(self._videos, name)
        if name is None or (clip is not None and not _is_same(clip, path)):
            return Source(UNNAMED, path, self._faces)
        return Source(name, path, self._faces, self._peaks.get(name))


def _is_same(clip: Path, video: Path) -> bool:
    """Return whether two files are the same one, or have the same content."""
    return clip.samefile(video) or filecmp.cmp(clip, video, shallow=False)


def _problem(video: str) -> str | None:
    """Return why a file cannot be used as a video, or None if it can."""
    if not os.path.isfile(video):
        return f"no file '{video}' (current directory: {os.getcwd()}).{data_folder_hint(video)} Correct the path"
    try:
        probe(Path(video))
    except UnusableMedia as error:
        return f"'{video}' cannot be used: {error}"
    return None


def plan_extraction(config: RunConfig, slots: Set[str], output: Path) -> list[Job]:
    """Return the job of each encoder after checking its weights by names and shapes; write nothing.

    Args:
        config: a configuration, with or without ``encoders``.
        slots: the slots that are needed.
        output: the folder in which the folders of arrays would be created.

    Raises:
        UserError: If weights are missing or do not fit the encoder or the model.
    """
    config = with_encoders_for(config, slots, output)
    if not config.encoders:
        return []
    require_weights(config)
    return plan_jobs(config, describe_encoders(config), Clips({}, []), set())


def require_encoders(config: RunConfig) -> None:
    """Check that a slot of the model can be filled with features of videos.

    Raises:
        UserError: If neither an encoder nor the model itself computes features for any block.
    """
    blocks = prediction_blocks(config)
    slots = sorted({slot for block in blocks for slot in block.slots})
    if any(block.frame_selection for block in blocks) or with_encoders_for(config, set(slots), Path()).encoders:
        return
    raise UserError(
        f"encoders: no block computes features of videos for the slots of the model ({', '.join(slots)}). Add the encoders with"
        " which the features of its training were extracted (docs/extraction.md)."
    )


def with_encoders_for(config: RunConfig, slots: Set[str], output: Path) -> RunConfig:
    """Return the configuration with only the encoders that fill these slots, and with ``output`` as the extraction's output."""
    encoders = {
        label: cfg for label, cfg in config.encoders.items() if config.encoder_class(f"encoders.{label}").SLOTS[0] in slots
    }
    return dataclasses.replace(config, encoders=encoders, extraction=_settings(config, str(output)))


def _settings(config: RunConfig, output: str) -> VideoExtractionConfig:
    """Return the ``extraction`` block, or its defaults, with .npy files in ``output`` as its result.

    Of the block of another extractor, only the keys that all extractors have are used.
    """
    block: ExtractorConfig | None = config.extraction
    if block is None:
        block = VideoExtractionConfig(videos=os.curdir, output=output)
    elif not isinstance(block, VideoExtractionConfig):
        block = VideoExtractionConfig(videos=block.videos, output=output, num_workers=block.num_workers)
    return dataclasses.replace(block, output=output, stored_as="npy", failures="report")


def _name(video: Path, videos: Path) -> str | None:
    """Return the path relative to ``videos``, or else the file name, without extension; None if it cannot be a clip name."""
    path, folder = video.resolve(), videos.resolve()
    name = (path.relative_to(folder) if path.is_relative_to(folder) else Path(video.name)).with_suffix("").as_posix()
    try:
        return safe_name(name) if name.isprintable() else None
    except ValueError:
        return None

"""The videos of a prediction: checks, names, and extraction of their features with the configured encoders."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from emollama.component_configs import ExtractorConfig
from emollama.config import RunConfig
from emollama.data.annotations import safe_name
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.extraction.clips import Clips
from emollama.extraction.configs import VideoExtractionConfig
from emollama.extraction.jobs import Job, describe_encoders, plan_jobs, require_weights
from emollama.extraction.work import Share
from emollama.listing import abbreviated
from emollama.media.frame_selection import read_peaks
from emollama.media.frames import probe
from emollama.media.source import Source, UnusableMedia
from emollama.paths import data_folder_hint


class Extracted(NamedTuple):
    """The features that one encoder extracted from the videos.

    Attributes:
        encoder: dotted name of the encoder's block.
        folder: folder of the arrays and their manifest.
        failed: clip name -> why it has no array.
    """

    encoder: str
    folder: Path
    failed: dict[str, str]


def find_videos(config: RunConfig, videos: Sequence[str]) -> dict[str, Source]:
    """Open each video once and return name -> video, in order.

    A video in the folder of ``extraction.videos`` has the name that the extraction uses, because a random frame selection depends
    on the name.

    Raises:
        UserError: If videos do not exist or cannot be read. The message lists all of them.
    """
    if problems := [problem for video in videos if (problem := _problem(video))]:
        raise UserError(f"--video: {abbreviated(problems, '; ').rstrip('.')}.")
    cfg = _settings(config, "")
    peaks = read_peaks(cfg.peak_index_path) if cfg.peak_index_path is not None else {}
    faces = Path(cfg.face_path) if cfg.face_path is not None else None
    sources: dict[str, Source] = {}
    for index, video in enumerate(videos):
        name = _name(Path(video), Path(cfg.videos))
        name = f"video_{index}" if name is None or name in sources else name
        sources[name] = Source(name, Path(video).absolute(), faces, peaks.get(name))
    return sources


def _problem(video: str) -> str | None:
    """Return why a file cannot be used as a video, or None if it can."""
    if not os.path.isfile(video):
        return f"no file '{video}' (current directory: {os.getcwd()}).{data_folder_hint(video)} Correct the path"
    try:
        probe(Path(video))
    except UnusableMedia as error:
        return f"'{video}' cannot be used: {error}"
    return None


def extract(config: RunConfig, slots: set[str], sources: dict[str, Source], output: Path, world: World) -> dict[str, Extracted]:
    """Encode the videos with the configured encoders, one encoder after another.

    Args:
        config: a configuration with ``encoders``.
        slots: the required slots. Encoders for other slots do not run.
        sources: name -> video.
        output: the folder in which the folders of arrays are created.
        world: the processes, each of which encodes a part of the videos.

    Returns:
        First slot of an encoder -> its features.

    Raises:
        UserError: If weights are missing or do not fit the encoder or the model.
    """
    config = _with_encoders_for(config, slots, output)
    if not config.encoders:
        return {}
    extracted = {}
    for job in world.on_rank_zero(lambda: _open_jobs(config, sources)):
        failed: dict[str, str] = {}
        for reasons in world.on_all_ranks(partial(_encode_share, config, job, world)):
            failed |= reasons
        extracted[job.slot] = Extracted(f"encoders.{job.label}", job.arrays.folder, failed)
    return extracted


def plan_extraction(config: RunConfig, slots: set[str], sources: dict[str, Source], output: Path) -> list[Job]:
    """Return the jobs of :func:`extract` after checking the encoders' weights by names and shapes; write nothing.

    Raises:
        UserError: If weights are missing or do not fit the encoder or the model.
    """
    config = _with_encoders_for(config, slots, output)
    if not config.encoders:
        return []
    require_weights(config)
    return plan_jobs(config, describe_encoders(config), Clips(sources, []), set())


def _with_encoders_for(config: RunConfig, slots: set[str], output: Path) -> RunConfig:
    """Return the configuration with only the encoders that fill these slots, and with ``output`` as the extraction's output."""
    encoders = {
        label: cfg for label, cfg in config.encoders.items() if config.encoder_class(f"encoders.{label}").SLOTS[0] in slots
    }
    return dataclasses.replace(config, encoders=encoders, extraction=_settings(config, str(output)))


def _open_jobs(config: RunConfig, sources: dict[str, Source]) -> list[Job]:
    """Return the job of each encoder, with its folder of arrays created."""
    jobs = plan_jobs(config, describe_encoders(config), Clips(sources, []), set())
    for job in jobs:
        job.arrays.open(job.manifest)
    return jobs


def _encode_share(config: RunConfig, job: Job, world: World) -> dict[str, str]:
    """Encode this process's part of the videos; return clip name -> why it could not be encoded."""
    share, key = Share(job, world), f"encoders.{job.label}"
    encoder_class = config.encoder_class(key)
    encoder = world.rank_zero_first(lambda: encoder_class(job.cfg, device=world.device, key=key))
    share.work(encoder, config.extraction.num_workers)
    return share.failed


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

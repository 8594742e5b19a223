"""Videos that somebody asks about: checked, named, and their features extracted as an extraction would."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from emollama.config import RunConfig
from emollama.data.annotations import safe_name
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.extraction.clips import Clips
from emollama.extraction.jobs import Job, describe_job, planned, require_weights
from emollama.extraction.videos import VideoExtraction
from emollama.extraction.work import Share
from emollama.listing import abbreviated
from emollama.media.frame_selection import read_peaks
from emollama.media.frames import probe
from emollama.media.source import Source, UnusableMedia
from emollama.paths import data_folder_hint


class Extracted(NamedTuple):
    """What an encoder made of the videos.

    Attributes:
        encoder: dotted name of its block.
        folder: of the arrays, with their manifest.
        failed: clip -> why there is no array of it.
    """

    encoder: str
    folder: Path
    failed: dict[str, str]


def find_videos(config: RunConfig, videos: Sequence[str]) -> dict[str, Source]:
    """name -> video, in order; each is opened once. A clip of the extraction keeps its name, and with it its random frame.

    Raises:
        UserError: files that are not there or hold no video: all of them.
    """
    if useless := [told for video in videos if (told := _useless(video))]:
        raise UserError(f"--video: {abbreviated(useless, '; ').rstrip('.')}.")
    cfg = _settings(config, "")
    peaks = read_peaks(cfg.peak_index_path) if cfg.peak_index_path is not None else {}
    faces = Path(cfg.face_path) if cfg.face_path is not None else None
    found: dict[str, Source] = {}
    for number, video in enumerate(videos):
        name = _name(Path(video), Path(cfg.videos))
        name = f"video_{number}" if name is None or name in found else name
        found[name] = Source(name, Path(video).absolute(), faces, peaks.get(name))
    return found


def _useless(video: str) -> str | None:
    """Why nothing can be made of a file; None where it is a video."""
    if not os.path.isfile(video):
        return f"no file '{video}' (working folder: {os.getcwd()}).{data_folder_hint(video)} Correct the path"
    try:
        probe(Path(video))
    except UnusableMedia as error:
        return f"'{video}' is of no use: {error}"
    return None


def extract(config: RunConfig, slots: set[str], sources: dict[str, Source], output: Path, world: World) -> dict[str, Extracted]:
    """Encode the videos with the configured encoders, one encoder after another.

    Args:
        config: with ``encoders``.
        slots: those that are wanted; encoders of others do not run.
        sources: the videos.
        output: where the folders of arrays go.
        world: the processes, which share the videos.

    Returns:
        The first slot that an encoder's arrays fill -> what it made.

    Raises:
        UserError: weights that are missing or fit neither the encoder nor the model.
    """
    config = _with_encoders_of(config, slots, output)
    if not config.encoders:
        return {}
    made = {}
    for job in world.on_rank_zero(lambda: _opened(config, sources)):
        failed: dict[str, str] = {}
        for reasons in world.on_all_ranks(partial(_share, config, job, world)):
            failed |= reasons
        made[job.slot] = Extracted(f"encoders.{job.label}", job.arrays.folder, failed)
    return made


def plan_extraction(config: RunConfig, slots: set[str], sources: dict[str, Source], output: Path) -> list[Job]:
    """Return what :func:`extract` will do; the encoders' weights are checked by names and shapes, and nothing is written.

    Raises:
        UserError: weights that are missing or fit neither the encoder nor the model.
    """
    config = _with_encoders_of(config, slots, output)
    if not config.encoders:
        return []
    require_weights(config)
    return planned(config, describe_job(config), Clips(sources, []), set())


def _with_encoders_of(config: RunConfig, slots: set[str], output: Path) -> RunConfig:
    """Return the configuration with the encoders that fill these slots, extracting into a folder."""
    encoders = {label: cfg for label, cfg in config.encoders.items() if config.classes[f"encoders.{label}"].SLOTS[0] in slots}
    return dataclasses.replace(config, encoders=encoders, extraction=_settings(config, str(output)))


def _opened(config: RunConfig, sources: dict[str, Source]) -> list[Job]:
    """What each encoder has to do, with its folder of arrays ready."""
    jobs = planned(config, describe_job(config), Clips(sources, []), set())
    for job in jobs:
        job.arrays.open(job.manifest)
    return jobs


def _share(config: RunConfig, job: Job, world: World) -> dict[str, str]:
    """Do what this process gets of an encoder's videos; returns why nothing could be made of some."""
    share, key = Share(job, world), f"encoders.{job.label}"
    encoder = config.classes[key]
    made = world.rank_zero_first(lambda: encoder(job.cfg, device=world.device, key=key))
    share.work(made, config.extraction.num_workers)
    return share.failed


def _settings(config: RunConfig, output: str) -> Any:
    """The ``extraction`` block, or its defaults, with arrays as .npy files in another folder."""
    given = config.extraction or VideoExtraction.Config(videos=os.curdir, output=output)
    return dataclasses.replace(given, output=output, stored_as="npy", failures="report")


def _name(video: Path, videos: Path) -> str | None:
    """The path below the folder of videos, else the file's name, both without the ending; None where that would be unusual."""
    whole, folder = video.resolve(), videos.resolve()
    name = (whole.relative_to(folder) if whole.is_relative_to(folder) else Path(video.name)).with_suffix("").as_posix()
    try:
        return safe_name(name) if name.isprintable() else None
    except ValueError:
        return None

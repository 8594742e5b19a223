"""Opening files of video and sound, and telling those that are cut off. PyAV writes nothing to stderr by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import av

from emollama.media.source import UnusableMedia

MIN_COMPLETE = 0.9  # share of what a file announces that must be there: what is lacking more is not made into features
TOLERANCE_SECONDS = 0.1  # seconds that may lack in any case: headers of short clips are as far off


@contextmanager
def open_media(path: str | os.PathLike[str], kind: Literal["video", "audio"]) -> Iterator[tuple[Any, Any]]:
    """A file's container and its best stream of a kind, for as long as it is open.

    Raises:
        UnusableMedia: the file is not there, is none of these, breaks while it is read, or has no such stream.
    """
    try:
        # An absolute path: FFmpeg takes what stands before a colon for a protocol. Tags may be in any encoding.
        with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
            stream = container.streams.best(kind)
            if stream is None:
                raise UnusableMedia(f"no {kind} track in it")
            yield container, stream
    except av.FFmpegError as error:
        raise UnusableMedia(f"its {kind} cannot be read ({str(error.strerror).lower()})") from None


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream until the file ends, and an empty one.

    What a file announces is the length of each stream in .mp4, .mov and .avi, and that of the longest in .mkv and .webm. Other
    kinds, and files that were never closed, tell nothing but what FFmpeg guesses from their bytes: they are taken as they are.

    Raises:
        UnusableMedia: at the end, if less than :data:`MIN_COMPLETE` of the announced duration exists, so the file is damaged.
        av.FFmpegError: the file breaks amid.
    """
    ends: dict[int, float] = {}
    try:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
            if packet.stream.index == stream.index:  # empty packets tell 0 as their own stream_index
                yield packet
    except av.FFmpegError:
        _require_whole(container, stream, ends)
        raise
    _require_whole(container, stream, ends)


def _require_whole(container: Any, stream: Any, ends: Mapping[int, float]) -> None:
    """Compare what is announced with where the packets of each stream end, in seconds. A stream without any is not this case."""
    kind = container.format.name
    announced, there = 0.0, ends.get(stream.index, 0.0)
    if kind == "avi":  # its duration is what FFmpeg guesses of a part; its writers count one frame too many
        announced = float((stream.frames - 1) * stream.time_base)
    elif "mp4" in kind and stream.duration is not None:
        announced = float(stream.duration * stream.time_base)
    elif "matroska" in kind and container.duration is not None:
        announced, there = container.duration / av.time_base, max(ends.values(), default=0.0)
    if stream.index in ends and there < min(MIN_COMPLETE * announced, announced - TOLERANCE_SECONDS):
        raise UnusableMedia(
            f"only {there:.1f} of {announced:.1f} seconds of its {stream.type} are there: the file is cut off or damaged"
        )
